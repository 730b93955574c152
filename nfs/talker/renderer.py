"""From a portrait, expressions and cameras to images.

Legend: B frames of a batch, H image side. Sources: spec/inversion_and_talker.md 2.8, 2.11, 4.3.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nfs.geometry.cameras import orbit_cameras
from nfs.morphable.coefficients import Coefficients
from nfs.stylenerf.generator import Generator, Rendering, RenderOptions
from nfs.talker.deformation import OriginalWarp, WarpSettings, WorldLockedWarp, original_anchors
from nfs.talker.face import PortraitFace, matching_depth_scale
from nfs.talker.mouth import MouthInterior, darken_mouth
from nfs.talker.plane import world_to_plane

ORIGINAL_FRAME_PX = 224


@dataclass(frozen=True)
class Portrait:
    """An inverted identity: everything that stays the same over a video.

    The background is seen by the generator's frozen background camera, as in inversion.
    """

    generator: Generator
    """In evaluation mode, without gradients."""
    ws: Tensor
    """`[1, num_ws, w_dim]`."""
    background_code: Tensor
    """`[1, background_dim]`."""
    cam2world: Tensor
    """`[4, 4]` camera of the inverted image."""
    coefficients: Coefficients
    """Fit of the inverted image, one row."""


@dataclass(frozen=True)
class OriginalWarpSettings:
    """The warp of the original program (spec 2.9)."""

    stride: int = 1
    """Every how many vertices one is used."""


@dataclass(frozen=True)
class Look:
    """How frames are made."""

    warp: WarpSettings | OriginalWarpSettings = field(default_factory=WarpSettings)
    """Shape of the deformation."""
    calibrate_depth: bool = True
    """Put the face where the generator renders it, for the world-locked warp."""
    mouth: MouthInterior | None = field(default_factory=MouthInterior)
    """How the opening is painted; None leaves it."""


class FrameRenderer:
    """Renders batches of frames; frames do not depend on each other.

    Args:
        portrait: The identity.
        face: Its fitted face, on the generator's device.
        look: How frames are made.
    """

    def __init__(self, portrait: Portrait, face: PortraitFace, look: Look):
        self.portrait, self.face, self.look = portrait, face, look
        self._frozen_depths: tuple[Tensor, Tensor] | None = None
        if isinstance(look.warp, OriginalWarpSettings):
            level = torch.full((1,), torch.pi / 2)
            self._front = orbit_cameras(torch.zeros(1), level).to(portrait.ws)[0]
            front = self._synthesize(self._front[None], RenderOptions())
            self._frozen_depths = (front.depths_coarse, front.depths_fine)
        elif look.calibrate_depth:
            plain = self._synthesize(portrait.cam2world[None], RenderOptions())
            self.face = face.at_depth(matching_depth_scale(face, plain.depth, plain.opacity))

    def undeformed(self, cam2world: Tensor) -> Tensor:
        """Return the portrait `[B, 3, H, H]` in [-1, 1] without any motion."""
        options = RenderOptions(depths=self._frozen_depths)
        return self._synthesize(cam2world, options).image

    def __call__(self, expression: Tensor, cam2world: Tensor) -> Tensor:
        """Return frames `[B, 3, H, H]` in [-1, 1].

        Args:
            expression: `[B, 64]`.
            cam2world: `[B, 4, 4]`.
        """
        device = self.portrait.ws.device
        expression, cam2world = expression.to(device), cam2world.to(device)
        vertices, landmarks = self.face.move(expression)
        options = RenderOptions(
            point_warp=self._warp(vertices, cam2world), depths=self._frozen_depths
        )
        images = self._synthesize(cam2world, options).image
        if self.look.mouth is None:
            return images
        tan = self.face.tan_half_fov
        moved = world_to_plane(landmarks, cam2world, tan)[0]
        still = self.face.reference_landmarks.expand_as(landmarks)
        reference = world_to_plane(still, cam2world, tan)[0]
        paint = self.look.mouth
        return torch.stack(
            [darken_mouth(images[i], moved[i], reference[i], paint) for i in range(len(images))]
        )

    def _warp(self, vertices: Tensor, cam2world: Tensor) -> WorldLockedWarp | OriginalWarp:
        settings, reference = self.look.warp, self.face.reference
        if isinstance(settings, WarpSettings):
            visible = self.face.visible & self.face.visible_vertices(vertices, cam2world)
            return WorldLockedWarp(reference, vertices, visible=visible, settings=settings)
        anchors = self._anchors(reference[None], settings.stride)[0]
        return OriginalWarp(anchors, self._anchors(vertices, settings.stride), self._front)

    def _anchors(self, vertices: Tensor, stride: int) -> Tensor:
        front = self._front.expand(len(vertices), -1, -1)
        plane = world_to_plane(vertices[:, ::stride], front, self.face.tan_half_fov)[0]
        y_up = torch.stack((plane[..., 0], 1 - plane[..., 1]), dim=-1)
        return original_anchors(y_up * ORIGINAL_FRAME_PX)

    @torch.no_grad()
    def _synthesize(self, cam2world: Tensor, options: RenderOptions) -> Rendering:
        portrait, count = self.portrait, len(cam2world)
        return portrait.generator.synthesis(
            portrait.ws.expand(count, -1, -1),
            cam2world,
            background_code=portrait.background_code.expand(count, -1),
            options=replace(
                options, background_cam2world=portrait.generator.frozen_background_camera(count)
            ),
        )
