"""Starting a training from the weights of a checkpoint (fine-tuning, or one more resolution)."""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nfs.errors import ConfigError
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.export import load_discriminator, load_generator
from nfs.stylenerf.generator import Generator
from nfs.training.checkpoint import EMA

_log = logging.getLogger(__name__)
# Settings that may change between two trainings of the same weights.
_FREE = {
    *("img_resolution", "resolution_start", "progressive", "grow_field", "cameras", "w_avg_beta"),
    *("magnitude_ema_beta", "num_samples", "num_background_samples", "samples_without_curriculum"),
    *("lowres_head", "mbstd_group_size", "fade", "num_frozen_layers"),
}
_BLOCK = re.compile(r"(?:upsampler\.)?blocks\.(\d+)\.")


def start_from(
    directory: str | Path, generator: Generator, discriminator: Discriminator
) -> dict[str, Tensor]:
    """Copy a checkpoint's weights into new networks.

    The architectures must agree. The new ones may have a larger `img_resolution`: then the blocks
    above the checkpoint's resolution keep their random start.

    Args:
        directory: Checkpoint with a discriminator (`nfs checkpoint import`, or of a run).
        generator: G, changed in place.
        discriminator: D, changed in place.

    Returns:
        Start of the averaged generator: the checkpoint's average, or its weights if it has none.

    Raises:
        ArtifactError: If the directory is no StyleNeRF checkpoint with a discriminator.
        ConfigError: If an architecture differs; every differing setting is named.
    """
    source = load_generator(directory, ema=False)
    critic = load_discriminator(directory)
    problems = [
        *_differences("generator", asdict(source.spec), asdict(generator.spec)),
        *_differences("discriminator", asdict(critic.spec), asdict(discriminator.spec)),
    ]
    old, new = source.spec.img_resolution, generator.spec.img_resolution
    if old > new:
        problems.append(f"generator.img_resolution: {old} px in the checkpoint, {new} px here")
    if problems:
        raise ConfigError(
            f"init={directory}: the architectures differ; set these as in the checkpoint:\n  "
            + "\n  ".join(problems)
        )
    where = f"init={directory}"
    _copy(source.state_dict(), generator, old, f"{where}: generator")
    _copy(critic.state_dict(), discriminator, old, f"{where}: discriminator")
    averaged = generator.state_dict()
    if (Path(directory) / EMA).is_file():
        averaged |= load_generator(directory, ema=True).state_dict()
    _log.info("started from %s (%d px, now %d px)", directory, old, new)
    return {name: value.clone() for name, value in averaged.items()}


def _differences(section: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    names = [name for name in theirs if name not in _FREE and theirs[name] != ours[name]]
    if "background_num_frequencies" in names:
        octaves = {
            tree["background_num_frequencies"] or tree["num_frequencies"] for tree in (theirs, ours)
        }
        if len(octaves) == 1:
            names.remove("background_num_frequencies")
    if "flip_up_kernel" in names and theirs["kernel_size"] == 1:
        names.remove("flip_up_kernel")
    return [f"{section}.{n}: {theirs[n]!r} in the checkpoint, {ours[n]!r} here" for n in names]


def _copy(source: Mapping[str, Tensor], target: nn.Module, resolution: int, where: str) -> None:
    """Copy tensors by name; only blocks above `resolution` may be missing in `source`."""
    state = target.state_dict()
    wrong = [name for name in source if name not in state]
    wrong += [n for n in state if n not in source and not _is_above(n, resolution)]
    wrong += [n for n in source if n in state and source[n].shape != state[n].shape]
    if wrong:
        raise ConfigError(
            f"{where}: {', '.join(sorted(wrong)[:5])} ({len(wrong)} in all) do not fit; only 2-D "
            "blocks above the checkpoint's resolution may be new (architecture skip)"
        )
    target.load_state_dict({**state, **source}, strict=True)


def _is_above(name: str, resolution: int) -> bool:
    block = _BLOCK.match(name)
    return block is not None and int(block[1]) > resolution
