"""ArcFace: training step and Partial-FC head against a plain form of the original's.

Loss and gradients of the two heads are compared before timing. The step is timed in single
precision, equal to the original's, and in bf16, the `precision` for CPUs with such instructions.
`--compiled` also times the compiled network (its compilation takes minutes on a CPU).
"""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _arcface_plain import (
    MARGIN,
    OPTIMIZER,
    PlainHead,
    plain_head_step,
    plain_network,
    plain_step,
)
from _harness import Report, arguments, interleave
from torch import Tensor, nn

from nfs.arcface import PartialFC, RowSGD, build_backbone, margins
from nfs.arcface.task import ArcfaceParts, ArcfaceSettings, ArcfaceTask

D, HEAD_BATCH = 512, 32
STEP_CLASSES = 10_000
HEADS = ((100_000, 0.1, 3.0), (100_000, 1.0, None), (10_000, 0.1, None))


class OneProcess:
    """The part of a worker context that the task uses."""

    device = torch.device("cpu")

    def wrap(self, module: nn.Module) -> nn.Module:
        return module


def main() -> None:
    options = arguments(
        __doc__,
        ("--repeats", {"type": int, "default": 3}),
        ("--batch", {"type": int, "default": 32}),
        ("--backbone", {"default": "r50"}),
        ("--compiled", {"action": "store_true"}),
    )
    torch.manual_seed(0)
    report = Report("arcface", {"backbone": options.backbone, "batch": options.batch})
    check_memory(report)
    for classes, ratio, target in HEADS:
        time_head(report, classes, ratio, repeats=options.repeats + 2)
        name = head_name(classes, ratio)
        report.ratio(name, f"{name} plain", f"{name} nfs", target=target)
    time_step(report, options.backbone, options.batch, options.repeats, compiled=options.compiled)
    report.ratio("training step", "step plain", "step nfs", target=1.3)
    report.ratio("training step, bf16", "step plain", "step nfs bf16", target=1.3)
    if options.compiled:
        report.ratio("training step, compiled", "step plain", "step nfs compiled")
    report.write(options.out)


def head_name(classes: int, ratio: float) -> str:
    return f"head {classes} classes ratio {ratio}"


def make_head(classes: int, ratio: float) -> PartialFC:
    return PartialFC(margins.cosface(MARGIN), D, classes, class_sample_ratio=ratio)


def time_head(report: Report, classes: int, ratio: float, *, repeats: int) -> None:
    embeddings = torch.randn(HEAD_BATCH, D, requires_grad=True)
    labels = torch.randint(0, classes, (HEAD_BATCH,))
    ours = make_head(classes, ratio)
    plain = PlainHead(ours.weight.detach(), ratio)
    compare(report, head_name(classes, ratio), plain, ours, embeddings, labels)
    optimizer = RowSGD(ours.weight, momentum=0.9, weight_decay=5e-4)

    def run() -> None:
        embeddings.grad = None
        ours(embeddings, labels).backward()
        optimizer.step(ours.take_gradient(), 0.1)

    name = head_name(classes, ratio)
    cases = {f"{name} plain": plain_head_step(plain, embeddings, labels), f"{name} nfs": run}
    report.timings |= interleave(cases, repeats=repeats)


def compare(
    report: Report,
    name: str,
    plain: PlainHead,
    ours: PartialFC,
    embeddings: Tensor,
    labels: Tensor,
) -> None:
    """Check loss and both gradients at one draw."""
    draw = torch.rand(len(plain.weight))
    expected = plain(embeddings, labels, draw)
    expected.backward()
    gradient, embeddings.grad = embeddings.grad, None
    loss = ours(embeddings, labels, draw)
    loss.backward()
    rows = ours.take_gradient()
    reference = plain.weight.grad
    selected = reference if rows.rows is None else reference[rows.rows]
    report.check(f"{name}: loss", float((loss - expected).abs().detach()), 2e-5)
    report.check(f"{name}: embeddings", float((embeddings.grad - gradient).abs().max()), 1e-6)
    scale = float(selected.abs().max())
    report.check(f"{name}: rows", float((rows.values - selected).abs().max()) / scale, 1e-5)
    plain.zero_grad()


def check_memory(report: Report) -> None:
    """Memory that a step of the sampled head adds to the class centres, over a dense step's."""
    classes, ratio = 100_000, 0.1
    embeddings = torch.randn(HEAD_BATCH, D, requires_grad=True)
    labels = torch.randint(0, classes, (HEAD_BATCH,))
    head = make_head(classes, ratio)
    optimizer = RowSGD(head.weight)
    before = resident_mb()
    head(embeddings, labels).backward()
    optimizer.step(head.take_gradient(), 0.1)
    dense_mb = 2 * classes * D * 4 / 1e6
    report.check("memory added by a sampled step / dense", (resident_mb() - before) / dense_mb, 0.5)


def time_step(report: Report, backbone: str, batch: int, repeats: int, *, compiled: bool) -> None:
    images = torch.randint(0, 256, (batch, 3, 112, 112), dtype=torch.uint8)
    labels = torch.randint(0, STEP_CLASSES, (batch,))
    network = build_backbone(backbone)
    head = make_head(STEP_CLASSES, 1.0)
    plain = PlainHead(head.weight.detach(), 1.0)
    cases = {
        "step plain": plain_step(plain_network(copy.deepcopy(network)), plain, images, labels),
        "step nfs": our_step(copy.deepcopy(network), backbone, images, labels),
        "step nfs bf16": our_step(
            copy.deepcopy(network), backbone, images, labels, precision="bf16"
        ),
    }
    if compiled:
        cases["step nfs compiled"] = our_step(network, backbone, images, labels, compiled=True)
    report.timings |= interleave(cases, repeats=repeats)


def our_step(
    network: nn.Module,
    name: str,
    images: Tensor,
    labels: Tensor,
    *,
    precision: str = "fp32",
    compiled: bool = False,
) -> Callable[[], None]:
    parts = ArcfaceParts(
        make_head=partial(make_head, STEP_CLASSES, 1.0),
        make_optimizer=lambda named: torch.optim.SGD(named.values(), fused=True, **OPTIMIZER),
        make_row_optimizer=RowSGD,
        name=name,
    )
    settings = ArcfaceSettings(batch_size=len(images), precision=precision, compile=compiled)
    task = ArcfaceTask(network, parts, settings)
    task.setup(OneProcess())
    batch = {"image": images, "label": labels}

    def run() -> None:
        task.train_step(batch, 0)

    return run


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
