"""The two players of the training: a network, its optimiser, and how it makes a step."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import cast

import torch
import torch._dynamo as dynamo
from torch import Tensor, nn

from nfs.runtime.context import WorkerContext, no_sync
from nfs.stylenerf.field import ColourHead
from nfs.stylenerf.losses import lazy_adam
from nfs.stylenerf.phases import PhaseLoss
from nfs.stylenerf.synthesis import ToRgb
from nfs.training.guard import guarded_step

_MAX_GRAPHS = 64


class Player:
    """A network that is trained in some phases and only differentiated through in others.

    Args:
        network: The network, on its device; parameters without gradients stay as they are.
        context: Wraps the network where there are several ranks.
        lr: Learning rate before the correction for lazy regularisation.
        betas: Adam's decay rates, likewise.
        interval: Steps between those of the network's regulariser, or None without one.
        compiled: Compile the network for passes that are differentiated once.
    """

    def __init__(
        self,
        network: nn.Module,
        context: WorkerContext,
        *,
        lr: float,
        betas: tuple[float, float],
        interval: int | None,
        compiled: bool = False,
    ) -> None:
        self.network = network
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.lr, betas = lazy_adam(lr, betas, interval)
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=self.lr, betas=betas, eps=1e-8, fused=True
        )
        self.wrapped = context.wrap(network)
        """DDP, or the network itself: for passes whose gradients are wanted."""
        self.main = compiled_network(self.wrapped) if compiled else self.wrapped
        """The same, perhaps compiled: for passes that are differentiated once."""
        self.alone = network
        """Perhaps compiled: for passes in which the parameters get no gradients."""
        if compiled:
            self.alone = self.main if self.wrapped is network else compiled_network(network)

    def set_rate(self, scale: float) -> None:
        """Set the learning rate to `scale` times the initial one."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * scale

    def require_gradients(self, wanted: bool) -> None:
        """Let gradients reach the parameters, or stop them."""
        for parameter in self.parameters:
            parameter.requires_grad_(wanted)

    def step(
        self,
        losses: Sequence[Callable[[], PhaseLoss]],
        *,
        idle: Sequence[nn.Parameter],
        unused: Sequence[nn.Parameter],
        phase: str,
        where: str,
    ) -> dict[str, Tensor]:
        """Step on the mean loss of all rounds.

        Args:
            losses: Computes the loss of each round.
            idle: Parameters of blocks that wait for their growth stage; the step leaves them alone.
            unused: Other parameters that a loss may not depend on.
            phase: Name for the metrics.
            where: Position of the run, for errors.

        Returns:
            Means of terms and observations, the gradient norm and the time taken.

        Raises:
            NonFiniteError: Before the step.
        """
        start = time.monotonic()
        self.optimizer.zero_grad(set_to_none=True)
        terms: list[dict[str, Tensor]] = []
        observed: list[dict[str, Tensor]] = []
        for number, loss in enumerate(losses, start=1):
            # Gradients travel between ranks once, with the last round.
            with nullcontext() if number == len(losses) else no_sync(self.wrapped):
                outcome = loss()
                torch.autograd.backward(outcome.total / len(losses) + _touch([*idle, *unused]))
            terms.append({name: term.detach() for name, term in outcome.terms.items()})
            observed.append(outcome.observed)
        for parameter in idle:
            # So that Adam's statistics start when the block does.
            parameter.grad = None
        norm = guarded_step(self.optimizer, _mean(terms), self.parameters, where)
        return {
            **_mean(terms),
            **_mean(observed),
            f"grad/{phase}_norm": norm,
            f"time/{phase}_s": torch.tensor(time.monotonic() - start),
        }


def compiled_network(
    module: nn.Module, backend: str | Callable[..., object] = "inductor"
) -> nn.Module:
    """Return a compiled module with room for the graphs of a whole run.

    Each growth stage needs graphs with and without gradients, with and without mixed styles; beyond
    torch's limit of 8 later stages would run uncompiled.

    Args:
        module: Network or its DDP wrapper.
        backend: Of `torch.compile`.
    """
    # Not `torch.compile(recompile_limit=...)`: torch 2.11 does not know it.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _MAX_GRAPHS)
    return cast(nn.Module, torch.compile(module, backend=backend))


def block_parameters(blocks: nn.ModuleDict, *, above: int) -> list[nn.Parameter]:
    """Return the parameters of the blocks of a resolution above `above`."""
    return [
        parameter
        for name, block in blocks.items()
        if int(name) > above
        for parameter in block.parameters()
    ]


def colour_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all layers that make colours."""
    layers = [m for m in network.modules() if isinstance(m, ToRgb | ColourHead)]
    return [parameter for layer in layers for parameter in layer.parameters()]


def _touch(parameters: Sequence[nn.Parameter]) -> Tensor | float:
    """Zero that depends on `parameters`, so that DDP does not wait for their gradients."""
    return sum((0 * p.sum() for p in parameters if p.requires_grad), start=0.0)


def _mean(rounds: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([values[name] for values in rounds]).mean() for name in rounds[0]}
