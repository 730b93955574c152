"""Stopping at the first non-finite number, before it reaches a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from nfs.errors import NonFiniteError


def check_finite(terms: Mapping[str, torch.Tensor], where: str = "") -> None:
    """Raise for the first term that is NaN or infinite; one host synchronisation for all.

    Args:
        terms: Scalars by name.
        where: Position of the run, for the message.

    Raises:
        NonFiniteError: Naming the term.
    """
    if not terms:
        return
    values = torch.stack([v.detach().float().reshape(()) for v in terms.values()])
    if bool(torch.isfinite(values).all()):
        return
    for name, value in zip(terms, values.tolist(), strict=True):
        if value != value or value in (float("inf"), float("-inf")):
            raise NonFiniteError(name, value, where)


def guarded_step(
    optimizer: torch.optim.Optimizer,
    terms: Mapping[str, torch.Tensor],
    parameters: Iterable[nn.Parameter],
    where: str = "",
) -> torch.Tensor:
    """Check losses and the gradient norm, then make the optimiser step.

    Args:
        optimizer: Steps over `parameters`, whose gradients are ready.
        terms: Losses by name, checked first.
        parameters: Parameters whose total gradient norm must be finite.
        where: Position of the run, for the message.

    Returns:
        The total gradient norm.

    Raises:
        NonFiniteError: Before the step; the weights are untouched.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    check_finite({**terms, "grad_norm": norm}, where)
    optimizer.step()
    return norm.detach()
