"""Writing and reading generator checkpoints (`weights`, `ema`, `model.json`, `card.md`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from nfs.errors import ArtifactError
from nfs.stylenerf.discriminator import Discriminator
from nfs.stylenerf.generator import Generator
from nfs.stylenerf.spec import CameraPrior, DiscriminatorSpec, GeneratorSpec
from nfs.training.checkpoint import read_model, read_weights, write_checkpoint

KIND = "stylenerf"
DISCRIMINATOR_FILE = "discriminator.safetensors"


def export_generator(
    directory: str | Path,
    generator: Generator,
    *,
    ema: Generator | None = None,
    discriminator: Discriminator | None = None,
    card: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    alpha: float = 1.0,
) -> None:
    """Write a checkpoint directory.

    Args:
        directory: Made if absent.
        generator: Trained weights.
        ema: Averaged weights.
        discriminator: For fine-tuning elsewhere.
        card: Facts for `card.md`, e.g. data and configuration.
        origin: For an imported one: plain facts about the original, kept in `model.json`.
        alpha: Growth stage in [0, 1] of the weights, kept in `model.json`.
    """
    model: dict[str, Any] = {"kind": KIND, "generator": generator.spec.to_dict(), "alpha": alpha}
    if origin is not None:
        model["origin"] = dict(origin)
    if discriminator is not None:
        model["discriminator"] = discriminator.spec.to_dict()
    write_checkpoint(
        Path(directory),
        generator.state_dict(),
        model=model,
        ema=None if ema is None else ema.state_dict(),
        card=_card(generator, card or {}),
    )
    if discriminator is not None:
        weights = {k: v.detach().cpu().contiguous() for k, v in discriminator.state_dict().items()}
        save_file(weights, Path(directory) / DISCRIMINATOR_FILE)


def load_generator(directory: str | Path, *, ema: bool = True) -> Generator:
    """Return the generator of a checkpoint directory, in eval mode on the CPU.

    It renders at the growth stage of the checkpoint where none is asked for.

    Args:
        directory: Written by `export_generator` or `jobs.train_stylenerf`.
        ema: Prefer the averaged weights.

    Raises:
        ArtifactError: If it is not a StyleNeRF checkpoint or its weights do not fit.
    """
    model = _model(directory)
    generator = Generator(GeneratorSpec.from_dict(model["generator"]))
    generator.alpha = growth_stage(model)
    try:
        generator.load_state_dict(read_weights(directory, ema=ema), strict=True)
    except RuntimeError as error:
        raise ArtifactError(f"{directory}: weights do not fit model.json: {error}") from error
    return generator.eval()


def growth_stage(model: Mapping[str, Any]) -> float:
    """Return the growth stage in a checkpoint's `model.json`; 1 where it says none."""
    return float(model.get("alpha", 1.0))


def load_discriminator(directory: str | Path) -> Discriminator:
    """Return the discriminator saved beside a generator, in eval mode on the CPU.

    Raises:
        ArtifactError: If there is none.
    """
    model, file = _model(directory), Path(directory) / DISCRIMINATOR_FILE
    if "discriminator" not in model or not file.is_file():
        raise ArtifactError(f"{directory}: holds no discriminator")
    discriminator = Discriminator(DiscriminatorSpec.from_dict(model["discriminator"]))
    discriminator.load_state_dict(load_file(file), strict=True)
    return discriminator.eval()


def _model(directory: str | Path) -> dict[str, Any]:
    model = read_model(directory)
    if model.get("kind") != KIND:
        raise ArtifactError(f"{directory}: holds a {model.get('kind')!r} model, need {KIND!r}")
    return model


def _card(generator: Generator, facts: Mapping[str, Any]) -> str:
    spec = generator.spec
    millions = sum(p.numel() for p in generator.parameters()) / 1e6
    lines = [
        "# StyleNeRF generator",
        "",
        f"- {spec.img_resolution} px, field at {spec.resolution_vol} px, {millions:.2f} M numbers",
        f"- cameras: {_ranges(spec.cameras)}",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "It shows the people in its training data. Ask before you show them.",
        "",
    ]
    return "\n".join(lines)


def _ranges(cameras: CameraPrior) -> str:
    kind = "gaussian" if cameras.gaussian else "uniform"
    if not cameras.angular:
        return f"shares {cameras.yaw_rad} around, {cameras.pitch_rad} from the top ({kind})"
    return f"yaw {_degrees(cameras.yaw_rad)}, pitch {_degrees(cameras.pitch_rad)} ({kind})"


def _degrees(limits: tuple[float, float]) -> str:
    low, high = (value * 57.29578 for value in limits)
    return f"{low:.1f} to {high:.1f} degrees"
