"""A rank's batch divided into passes: real images at the current resolution and their conditions.

Legend: B images of this rank, b images of one pass, r current resolution.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from nfs.geometry.cameras import orbit_cameras
from nfs.stylenerf.cameras import middle_camera
from nfs.stylenerf.latents import Coded, Conditions
from nfs.stylenerf.settings import GanSettings
from nfs.stylenerf.spec import CameraPrior


@dataclass(frozen=True)
class Round:
    """One pass's part of a batch."""

    real: Tensor
    """`[b, 3, r, r]` in [-1, 1]."""
    conditions: Conditions
    """What fakes may have in common with them."""
    coded: Coded | None
    """Fakes that reproduce the first of them."""


def divide(
    batch: dict[str, Tensor],
    settings: GanSettings,
    prior: CameraPrior,
    *,
    samples_seen: int,
    size: tuple[int, int],
) -> list[Round]:
    """Divide a rank's batch into equal rounds.

    Args:
        batch: `image`: uint8 `[B, 3, R, R]`; with labels `label [B, c_dim]`; with known cameras
            `yaw_pitch [B, 2]`; for a warm start `code [B, z_dim]`.
        settings: Numbers.
        prior: Cameras of the generator.
        samples_seen: The clock.
        size: Height and width of the current resolution.
    """
    real = batch["image"].float() / 127.5 - 1
    if tuple(real.shape[2:]) != size:
        real = F.interpolate(real, size=size, mode="area")
    count = len(real) // settings.num_rounds(len(real))
    rounds = []
    for first in range(0, len(real), count):
        rows = {name: value[first : first + count] for name, value in batch.items()}
        conditions = Conditions(
            c=rows.get("label"),
            yaw_pitch=rows["yaw_pitch"] if settings.image_cameras else None,
        )
        coded = _coded(rows, settings.num_coded(samples_seen, count), prior)
        rounds.append(Round(real[first : first + count], conditions, coded))
    return rounds


def _coded(rows: dict[str, Tensor], count: int, prior: CameraPrior) -> Coded | None:
    if count == 0:
        return None
    codes = rows["code"][:count]
    if "yaw_pitch" in rows:
        yaw, pitch = rows["yaw_pitch"][:count].unbind(dim=1)
        return Coded(codes, orbit_cameras(yaw, pitch, sum(prior.radius) / 2))
    return Coded(codes, middle_camera(prior, codes))
