"""A plain form of the original's training step: NCHW, eager, dense head, unfused optimiser.

Written for the comparison in `bench_arcface.py`: the same mathematics, without our changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALE, MARGIN = 64.0, 0.4
OPTIMIZER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


class PlainHead(nn.Module):
    """Sample, normalise, margin on the matrix, softmax written out, one host wait per step."""

    def __init__(self, weight: Tensor, ratio: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.num_sample = int(ratio * len(weight))

    def forward(self, embeddings: Tensor, labels: Tensor, draw: Tensor) -> Tensor:
        weight = self.weight
        if self.num_sample < len(weight):
            scores = draw.clone()
            scores[torch.unique(labels)] = 2.0
            rows = torch.topk(scores, self.num_sample)[1].sort()[0]
            labels = torch.searchsorted(rows, labels)
            weight = weight[rows]
        everyone = torch.arange(len(labels))
        logits = F.linear(F.normalize(embeddings), F.normalize(weight)).clamp(-1, 1)
        target = logits[everyone, labels] - MARGIN
        logits = logits.clone()
        logits[everyone, labels] = target
        logits = logits * SCALE
        exponent = (logits - logits.max(1, keepdim=True)[0].detach()).exp()
        probability = exponent / exponent.sum(1, keepdim=True)
        loss = -probability[everyone, labels].clamp_min(1e-30).log().mean()
        loss.item()
        return loss


class PlainPReLU(nn.PReLU):
    """torch's PReLU, in place of ours."""


def plain_network(network: nn.Module) -> nn.Module:
    """Put torch's PReLU in place of ours, keeping the weights."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "ChannelPReLU":
                plain = PlainPReLU(len(child.weight))
                plain.load_state_dict(child.state_dict())
                setattr(parent, name, plain)
    return network.train()


def plain_step(
    network: nn.Module, head: PlainHead, images: Tensor, labels: Tensor
) -> Callable[[], None]:
    """Return one training step of network and head; images are uint8 `[B, 3, 112, 112]`."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [{"params": trained}, {"params": [head.weight]}]
    optimizer = torch.optim.SGD(groups, foreach=False, **OPTIMIZER)

    def run() -> None:
        pixels = (images.float() / 255 - 0.5) / 0.5
        head(network(pixels), labels, torch.rand(len(head.weight))).backward()
        nn.utils.clip_grad_norm_(trained, 5, foreach=False)
        optimizer.step()
        optimizer.zero_grad()

    return run


def plain_head_step(head: PlainHead, embeddings: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return one training step of the head alone."""
    optimizer = torch.optim.SGD([head.weight], foreach=False, **OPTIMIZER)

    def run() -> None:
        embeddings.grad = None
        head(embeddings, labels, torch.rand(len(head.weight))).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run
