"""Parity of backbones, schedule, sampler, records and pair files with recordings of ArcFace.

Margins, Partial-FC and verification are in `arcface_head_checks` and `arcface_verification_checks`.
Files are found by their names' patterns: other cases of the same format are checked too.
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from nfs.arcface.backbones import BackboneOptions, build_backbone
from nfs.arcface.recordio import RecordFile, encode_record, read_index
from nfs.arcface.records import FaceRecords, decode_face
from nfs.arcface.schedules import legacy_factor, original_order, polynomial_factor
from nfs.media.images import decode_jpeg
from nfs.pretrained import load_original
from tests.parity.arcface_head_checks import margin_checks, partial_fc_checks
from tests.parity.arcface_verification_checks import verification_checks
from tests.parity.replay import Check, check

_MODULE, _TRAIN, _SCHEDULE = 1e-4, 1e-3, 1e-12
_ROUNDING = 1e-3
_SUMS = 1e-5


def checks(folder: Path) -> dict[str, Check]:
    """Run every check whose files are in `folder`."""
    results: dict[str, Check] = {}
    results |= contract_checks(folder)
    recipe = _recipe(folder) if (folder / "recipe.py").exists() else None
    for file in sorted(folder.glob("state_*.json") if recipe else ()):
        results |= state_checks(file, recipe)
    for file in sorted(folder.glob("model_*.npz") if recipe else ()):
        results |= model_checks(file, recipe)
    results |= margin_checks(folder)
    results |= partial_fc_checks(folder)
    if (folder / "sched_sampler.npz").exists():
        results |= schedule_checks(folder / "sched_sampler.npz")
    results |= verification_checks(folder)
    if (folder / "rec").is_dir():
        results |= record_checks(folder / "rec")
    return results


def contract_checks(folder: Path) -> dict[str, Check]:
    """Names, order, shapes and counts of every backbone, without memory."""
    if not (folder / "contracts.json").exists():
        return {}
    results = {}
    for name, expected in json.loads((folder / "contracts.json").read_text()).items():
        with torch.device("meta"):
            model = build_backbone(name)
        state, parameters = model.state_dict(), list(model.parameters())
        text = "".join(f"{k} {','.join(map(str, v.shape))}\n" for k, v in state.items())
        found = {
            "keys": len(state),
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "parameter_tensors": len(parameters),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        if "drop_path" in expected:
            found["drop_path"] = model.blocks[-1].drop_path
            found["mask_ratio_argument"] = model.mask_ratio
            found["checkpointing"] = model.recompute
        wrong = [key for key, value in found.items() if value != expected[key]]
        results[f"contract/{name}"] = check(len(wrong), 0)
    return results


def state_checks(file: Path, recipe: ModuleType) -> dict[str, Check]:
    """Names, order, shapes and the sums of the filled tensors."""
    name = file.stem.removeprefix("state_")
    expected = json.loads(file.read_text())
    state = recipe.fill(build_backbone(name).state_dict())
    shapes = {key: list(value.shape) for key, value in state.items()}
    same = list(expected) == list(state) and all(expected[k][0] == shapes[k] for k in expected)
    error = max(abs(float(state[k].double().sum()) - expected[k][1]) for k in expected)
    return {
        f"state/{name}/names_and_shapes": check(0 if same else 1, 0),
        f"state/{name}/sums": check(error, _SUMS),
    }


def model_checks(file: Path, recipe: ModuleType) -> dict[str, Check]:
    """Eval-mode embedding and taps, then one deterministic step in train mode."""
    name = file.stem.removeprefix("model_")
    with np.load(file.parent / "inputs_u8.npz", allow_pickle=False) as data:
        images = torch.from_numpy(data["rgb"]).permute(0, 3, 1, 2).float()
    images = (images / 255 - 0.5) / 0.5
    with np.load(file, allow_pickle=False) as recorded:
        data = dict(recorded)
    weights = recipe.fill(build_backbone(name).state_dict())
    model = load_original(f"arcface/{name}", weights, {"num_features": data["emb"].shape[1]})
    results = _eval_checks(name, model, images, data)
    return results | _train_checks(name, weights, images, data)


def _eval_checks(
    name: str, model: torch.nn.Module, images: torch.Tensor, data: dict[str, np.ndarray]
) -> dict[str, Check]:
    taps: dict[str, torch.Tensor] = {}
    for key in data:
        if key.startswith("tap_") and key.endswith("_shape"):
            layer = key.removeprefix("tap_").removesuffix("_shape")
            model.get_submodule(layer).register_forward_hook(
                lambda _m, _i, out, layer=layer: taps.__setitem__(layer, out)
            )
    with torch.no_grad():
        embedding = model(images).numpy()
    cosine = (embedding * data["emb"]).sum(1) / (
        np.linalg.norm(embedding, axis=1) * np.linalg.norm(data["emb"], axis=1)
    )
    results = {
        f"model/{name}/emb": check(_relative(embedding, data["emb"]), _MODULE),
        f"model/{name}/cosine": check(float((1 - cosine).max()), 1e-6),
    }
    for layer, out in taps.items():
        flat = out.double().flatten()
        shape_ok = list(out.shape) == data[f"tap_{layer}_shape"].tolist()
        mean, std = data[f"tap_{layer}_meanstd"]
        errors = [
            0.0 if shape_ok else float("inf"),
            float(abs(flat.mean() - mean) / std),
            float(abs(flat.std() - std) / std),
            _relative(flat[:64].float().numpy(), data[f"tap_{layer}_head"]),
        ]
        results[f"model/{name}/tap_{layer}"] = check(max(errors), _MODULE)
    return results


def _train_checks(
    name: str, weights: dict[str, torch.Tensor], images: torch.Tensor, data: dict[str, np.ndarray]
) -> dict[str, Check]:
    # Recorded without masking, drop path and dropout.
    still = BackboneOptions(drop_path=0.0, mask_ratio=0.0) if name.startswith("vit") else None
    model = build_backbone(name, data["emb"].shape[1], still)
    model.load_state_dict(weights)
    model.train()
    random = np.random.RandomState(7)
    factors = torch.from_numpy(random.standard_normal(data["emb"].shape).astype(np.float32))
    embedding = model(images)
    loss = (embedding * factors).sum() / len(images)
    loss.backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    expected = dict(zip(data["grad_names"].tolist(), data["grad_norms"].tolist(), strict=True))
    worst = max(_norm_error(gradients, key, value) for key, value in expected.items())
    state = model.state_dict()
    full = [
        _relative(gradients[k].numpy(), data[f"grad::{k}"])
        for k in gradients
        if f"grad::{k}" in data and expected[k] >= _ROUNDING
    ]
    buffers = [
        _relative(state[k.removeprefix("buf::")].numpy(), data[k])
        for k in data
        if k.startswith("buf::") and not k.endswith("num_batches_tracked")
    ]
    return {
        f"model/{name}/train_emb": check(
            _relative(embedding.detach().numpy(), data["train_emb"]), _TRAIN
        ),
        f"model/{name}/train_loss": check(
            abs(loss.item() - float(data["train_loss"])) / abs(float(data["train_loss"])), _MODULE
        ),
        f"model/{name}/grad_names": check(0 if list(gradients) == list(expected) else 1, 0),
        f"model/{name}/grad_norms": check(worst, _TRAIN),
        f"model/{name}/gradients": check(max(full, default=0.0), _TRAIN),
        f"model/{name}/buffers": check(max(buffers, default=0.0), _MODULE),
    }


def _norm_error(gradients: dict[str, torch.Tensor], key: str, expected: float) -> float:
    if key not in gradients:
        return float("inf")
    norm = float(gradients[key].double().norm())
    if expected < _ROUNDING:  # an exact zero in real numbers
        return 0.0 if norm < _ROUNDING else float("inf")
    return abs(norm - expected) / expected


def schedule_checks(file: Path) -> dict[str, Check]:
    """Learning rates by step and the order of the original's sampler."""
    results = {}
    with np.load(file, allow_pickle=False) as recorded:
        data = dict(recorded)
    for key in sorted(data):
        if key.startswith("sampler_"):
            num_items, ranks, rank, epoch = (
                int(part.lstrip("nwsrepoch")) for part in key.split("_")[1:]
            )
            order = original_order(num_items, seed=2048, epoch=epoch, rank=rank, num_ranks=ranks)
            results[f"sampler/{key}"] = check(0 if list(order) == data[key].tolist() else 1, 0)
        elif f"{key}_args" in data:
            base, warmup, total, power = data[f"{key}_args"].tolist()
            steps = range(len(data[key]))
            if key.startswith("legacy"):
                rates = [
                    base * legacy_factor(i, total_steps=int(total), warmup_steps=int(warmup))
                    for i in steps
                ]
            else:
                rates = [
                    base
                    * polynomial_factor(
                        i,
                        total_steps=int(total),
                        warmup_steps=int(warmup),
                        power=power,
                        full_first_step=True,
                    )
                    for i in steps
                ]
            results[f"schedule/{key}"] = check(_max(np.asarray(rates) - data[key]), _SCHEDULE)
    return results


def record_checks(folder: Path) -> dict[str, Check]:
    """Every record read, and every file written again byte for byte."""
    expected = json.loads((folder / "expected.json").read_text())
    results = {}
    for file in sorted(folder.glob("*.rec")):
        name = file.stem
        keys, offsets = read_index(file.with_suffix(".idx"))
        reader = RecordFile(file)
        payloads = [reader.read(int(offset))[0] for offset in offsets]
        rows = expected.get(name, [])
        wrong = sum(
            not _record_fits(row, int(key), int(offset), payload)
            for row, key, offset, payload in zip(rows, keys, offsets, payloads, strict=True)
        )
        scanned = [(o, p) for o, p in reader.scan()]
        written, index, position = b"", "", 0
        for key, payload in zip(keys.tolist(), payloads, strict=True):
            index += f"{key}\t{position}\n"
            written += encode_record(payload)
            position = len(written)
        results |= {
            f"records/{name}/read": check(wrong, 0),
            f"records/{name}/scan": check(
                0 if scanned == list(zip(offsets.tolist(), payloads, strict=True)) else 1, 0
            ),
            f"records/{name}/written": check(0 if written == file.read_bytes() else 1, 0),
            f"records/{name}/index": check(
                0 if index == file.with_suffix(".idx").read_text() else 1, 0
            ),
        }
        if any("jpeg_sha1" in row for row in rows):
            images = [row for row in rows if row.get("jpeg_bytes")]
            results[f"records/{name}/images"] = check(abs(len(FaceRecords(file)) - len(images)), 0)
    return results


def _record_fits(row: dict, key: int, offset: int, payload: bytes) -> bool:
    facts: dict[str, object] = {"key": key, "offset": offset, "bytes": len(payload)}
    facts["payload_bytes"] = facts["length"] = facts["size"] = len(payload)
    facts["payload"] = facts["hex"] = facts["payload_hex"] = payload.hex()
    if "jpeg_sha1" in row:
        record = decode_face(payload)
        facts |= {
            "flag": record.flag,
            "label": list(record.labels),
            "id": record.id,
            "id2": record.id2,
            "jpeg_bytes": len(record.image),
            "jpeg_sha1": hashlib.sha1(record.image, usedforsecurity=False).hexdigest(),
        }
        if record.image:
            pixels = decode_jpeg(record.image)
            facts |= {
                "shape": list(pixels.shape),
                "pixel_sum": int(pixels.sum(dtype=np.int64)),
                "first_pixel_rgb": pixels[0, 0].tolist(),
            }
    return all(facts.get(name) == value for name, value in row.items())


def _recipe(folder: Path) -> ModuleType:
    """Load the fixture's own weight recipe: data of the folder, so never hard-coded here."""
    spec = importlib.util.spec_from_file_location("arcface_recipe", folder / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12))


def _max(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())
