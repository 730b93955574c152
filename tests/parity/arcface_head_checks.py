"""Parity of margins and of Partial-FC on as many ranks as were recorded (gloo processes)."""

import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nfs.arcface.collectives import OneRank, ProcessGroupRanks, Ranks
from nfs.arcface.margins import CombinedMargin, Margin, upstream
from nfs.arcface.partial_fc import PartialFC
from nfs.arcface.row_optimizers import RowAdamW, RowSGD
from nfs.errors import ConfigError
from tests.parity.replay import Check, check

_PFC = re.compile(r"pfc_ws(\d+)_rank(\d+)_(arc|cos)(?:_f([\d.]+?))?_sr([\d.]+)\.npz")
_TRAJECTORY = re.compile(r"traj_(dense|sgd|adamw)_ws(\d+)_rank(\d+)_sr([\d.]+)\.npz")
_MARGINS = {"arc": (1.0, 0.5, 0.0), "cos": (1.0, 0.0, 0.4)}
_MOMENT = 1e-4


def margin_checks(folder: Path) -> dict[str, Check]:
    """Upstream, 2022 and paper margins with gradients."""
    results: dict[str, Check] = {}
    for file, exact in (("margin.npz", False), ("margin_exact.npz", True)):
        if not (folder / file).exists():
            continue
        with np.load(folder / file, allow_pickle=False) as recorded:
            data = dict(recorded)
        for key in sorted(data):
            if key.endswith("_args"):
                name = key.removesuffix("_args")
                results |= _one_margin(name, data, exact)
            elif data[key].dtype.kind == "U":
                # The text of the original's error; ours refuses the same setting.
                factor = float(key.rpartition("_")[2]) / 100
                results[f"margin/{key}_refused"] = check(0 if _refuses(factor) else 1, 0)
    return results


def _refuses(factor: float) -> bool:
    try:
        upstream((factor, 0.0, 0.0))
    except ConfigError:
        return True
    return False


def _one_margin(name: str, data: dict[str, np.ndarray], exact: bool) -> dict[str, Check]:
    scale, m1, m2, m3, *rest = data[f"{name}_args"].tolist()
    margin: Margin
    if not exact:
        margin = upstream((m1, m2, m3), scale=scale, interclass_filter=rest[0])
        tolerances = 1e-5, 1e-6
    else:
        fold = "linear" if "fallback" in name else "none"
        margin = CombinedMargin(m1, m2, m3, scale=scale, fold=fold)
        tolerances = (2e-5, 2e-5) if fold == "linear" else (1e-9, 1e-9)
    dtype = torch.from_numpy(data[f"{name}_out"]).dtype
    logits = torch.from_numpy(data["logits"]).to(dtype).requires_grad_()
    out = margin(logits, torch.from_numpy(data["labels"]))
    out.backward(torch.from_numpy(data[f"{name}_gout"]).to(dtype))
    kind = "margin_exact" if exact else "margin"
    return {
        f"{kind}/{name}/out": check(_max(out.detach(), data[f"{name}_out"]), tolerances[0]),
        f"{kind}/{name}/gradient": check(_max(logits.grad, data[f"{name}_gin"]), tolerances[1]),
    }


def partial_fc_checks(folder: Path) -> dict[str, Check]:
    """Single steps and trajectories; one set of processes per recorded world size."""
    files = [
        f for f in sorted(folder.glob("*.npz")) if _PFC.match(f.name) or _TRAJECTORY.match(f.name)
    ]
    by_size: dict[int, list[Path]] = {}
    for file in files:
        match = re.search(r"_ws(\d+)_", file.name)
        by_size.setdefault(int(match.group(1)), []).append(file)
    results: dict[str, Check] = {}
    for size, group in sorted(by_size.items()):
        if size == 1:
            results |= _run_files(group, OneRank())
            continue
        with tempfile.TemporaryDirectory() as place:
            mp.spawn(_rank_main, (size, place, group), nprocs=size)
            for rank in range(size):
                results |= torch.load(Path(place) / f"{rank}.pt", weights_only=True)
    return results


def _rank_main(rank: int, size: int, place: str, files: list[Path]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=size
    )
    mine = [f for f in files if f"_rank{rank}_" in f.name]
    results = _run_files(mine, ProcessGroupRanks())
    torch.save(results, Path(place) / f"{rank}.pt")
    dist.destroy_process_group()


def _run_files(files: list[Path], ranks: Ranks) -> dict[str, Check]:
    results: dict[str, Check] = {}
    for file in files:
        with np.load(file, allow_pickle=False) as recorded:
            data = dict(recorded)
        single, trajectory = _PFC.match(file.name), _TRAJECTORY.match(file.name)
        if single:
            margin, ratio = _single_margin(single, data), float(single.group(5))
            results |= _one_step(file.stem, data, ranks, margin, ratio)
        else:
            results |= _trajectory(file.stem, data, ranks, trajectory.group(1))
    return results


def _single_margin(match: re.Match[str], data: dict[str, np.ndarray]) -> Margin:
    """Margin of a recorded step: `args` where recorded, else from the name (`f04` is 0.4)."""
    if "args" in data:
        scale, *margins, threshold = data["args"].tolist()
        return upstream(tuple(margins), scale=scale, interclass_filter=threshold)
    digits = match.group(4) or "0"
    threshold = float(digits) if "." in digits else int(digits) / 10 ** (len(digits) - 1)
    return upstream(_MARGINS[match.group(3)], interclass_filter=threshold)


def _one_step(
    name: str, data: dict[str, np.ndarray], ranks: Ranks, margin: Margin, ratio: float
) -> dict[str, Check]:
    head = _head(data, ranks, margin, ratio, torch.from_numpy(data["weight"]))
    embeddings = torch.from_numpy(data["emb"]).requires_grad_()
    loss = head(embeddings, torch.from_numpy(data["labels"]), torch.from_numpy(data["perm"]))
    loss.backward()
    gradient = head.take_gradient()
    dense = torch.zeros_like(head.weight.detach())
    results = {}
    if gradient.rows is None:
        dense += gradient.values
    else:
        dense[gradient.rows] = gradient.values
        same = gradient.rows.tolist() == data["weight_index"].tolist()
        results[f"{name}/weight_index"] = check(0 if same else 1, 0)
    return results | {
        f"{name}/shard": check(_shard_error(head, data), 0),
        f"{name}/loss": check(abs(loss.item() - float(data["loss"])), 2e-5),
        f"{name}/grad_emb": check(_max(embeddings.grad, data["grad_emb"]), 1e-6),
        f"{name}/grad_weight": check(_max(dense, data["grad_weight"]), 1e-4),
    }


def _trajectory(
    name: str, data: dict[str, np.ndarray], ranks: Ranks, kind: str
) -> dict[str, Check]:
    ratio = float(name.rpartition("_sr")[2])
    start, count = int(data["class_start"]), int(data["num_local"])
    classes = int(ranks.sum_(torch.tensor(count)))
    rows, dim = data["grad_emb0"].shape
    whole = 0.01 * np.random.RandomState(11).standard_normal((classes, dim))
    first = torch.from_numpy(whole[start : start + count].astype(np.float32))
    head = _head(data, ranks, upstream(_MARGINS["cos"]), ratio, first)
    optimizer, lr = _optimizer(kind, head.weight)
    errors: dict[str, float] = {"loss": 0.0, "index": 0.0, "grad_emb": 0.0}
    touched = torch.zeros(count, dtype=torch.bool)
    steps = sum(key.startswith("loss") for key in data)
    for step in range(steps):
        embeddings, labels, draw = _step_inputs(step, ranks, rows, dim, (classes, count))
        loss = head(embeddings, labels, draw)
        loss.backward()
        gradient = head.take_gradient()
        touched[gradient.rows] = True
        same = gradient.rows.tolist() == data[f"index{step}"].tolist()
        _worse(errors, "loss", abs(loss.item() - float(data[f"loss{step}"])))
        _worse(errors, "index", 0 if same else 1)
        _worse(errors, "grad_emb", _max(embeddings.grad, data[f"grad_emb{step}"]))
        optimizer.step(gradient, lr)
        for key, value in {"weight": head.weight.detach(), **optimizer.moments}.items():
            if f"{key}{step}" in data:
                _worse(errors, key, _max(value, data[f"{key}{step}"]))
    if kind != "dense":
        errors["untouched"] = float((head.weight.detach() != first)[~touched].sum())
    weight_tolerance = 1e-6 if kind == "adamw" else 1e-4
    tolerances = {"loss": 2e-5, "index": 0, "grad_emb": 5e-6, "weight": weight_tolerance}
    tolerances["untouched"] = 0
    return {f"{name}/{k}": check(v, tolerances.get(k, _MOMENT)) for k, v in errors.items()}


def _step_inputs(
    step: int, ranks: Ranks, rows: int, dim: int, sizes: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    part = slice(ranks.rank * rows, (ranks.rank + 1) * rows)
    everyone = np.random.RandomState(200 + step).standard_normal((ranks.size * rows, dim))
    labels = np.random.RandomState(300 + step).randint(0, sizes[0], ranks.size * rows)
    draw = np.random.RandomState(1000 + 10 * step + ranks.rank).rand(sizes[1])
    embeddings = torch.from_numpy(everyone[part].astype(np.float32)).requires_grad_()
    return embeddings, torch.from_numpy(labels[part]), torch.from_numpy(draw.astype(np.float32))


def _optimizer(kind: str, weight: torch.Tensor) -> tuple[RowSGD | RowAdamW, float]:
    makers: dict[str, tuple[Callable[..., RowSGD | RowAdamW], float]] = {
        "dense": (partial(RowSGD, momentum=0.9, weight_decay=5e-4, update="dense"), 0.1),
        "sgd": (partial(RowSGD, momentum=0.9, weight_decay=5e-4), 0.1),
        "adamw": (partial(RowAdamW, weight_decay=0.1, extra_count=1), 1e-3),
    }
    make, lr = makers[kind]
    return make(weight), lr


def _head(
    data: dict[str, np.ndarray], ranks: Ranks, margin: Margin, ratio: float, weight: torch.Tensor
) -> PartialFC:
    classes = int(ranks.sum_(torch.tensor(int(data["num_local"]))))
    head = PartialFC(margin, weight.shape[1], classes, class_sample_ratio=ratio, ranks=ranks)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def _shard_error(head: PartialFC, data: dict[str, np.ndarray]) -> int:
    found = (head.shard.start, len(head.shard), head.num_sample)
    expected = (int(data["class_start"]), int(data["num_local"]), int(data["num_sample"]))
    return 0 if found == expected else 1


def _worse(errors: dict[str, float], key: str, value: float) -> None:
    errors[key] = max(errors.get(key, 0.0), float(value))


def _max(actual: torch.Tensor, expected: np.ndarray) -> float:
    return float((actual.double() - torch.from_numpy(expected).double()).abs().max())
