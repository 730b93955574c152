"""From the settings of a render and its input artifacts to a plan and a renderer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nfs.audio.builders import load_checkpoint
from nfs.config.render import (
    FitsSource,
    FixedPose,
    OrbitPose,
    Original,
    RenderConfig,
    SpeechSource,
    WorldLocked,
)
from nfs.errors import ArtifactError
from nfs.inversion.identity import Identity, load_identity
from nfs.morphable.loading import load_model
from nfs.morphable.model import MorphableModel
from nfs.talker.deformation import WarpSettings
from nfs.talker.expressions import (
    SpeechDrive,
    add_blinks,
    clamp_bounds,
    from_fits,
    from_speech,
    smooth,
    speech_energy,
)
from nfs.talker.face import PortraitFace, tan_half_fov
from nfs.talker.mouth import MouthInterior, mouth_opening
from nfs.talker.plan import FramePlan
from nfs.talker.plane import circle_cameras, turn_cameras
from nfs.talker.renderer import FrameRenderer, Look, OriginalWarpSettings, Portrait
from nfs.talker.speech import MODEL_RATE_HZ, Speech, load_speech


@dataclass(frozen=True)
class Inputs:
    """What a plan is made of."""

    portrait: Portrait
    model: MorphableModel
    face: PortraitFace
    speech: Speech | None


def load_portrait(uri: str, model: MorphableModel, device: str = "cpu") -> Portrait:
    """Load an inverted identity.

    Raises:
        ArtifactError: If the artifact is missing or was fitted with another face model.
    """
    identity = load_identity(uri)
    _check_model(uri, identity, model)
    generator = identity.generator.to(device).eval().requires_grad_(False)
    return Portrait(
        generator=generator,
        ws=identity.pivot_ws.to(device),
        background_code=identity.background_code.to(device),
        cam2world=identity.reference_cam2world.to(device),
        coefficients=identity.reference_coefficients.to(device),
    )


def _check_model(uri: str, identity: Identity, model: MorphableModel) -> None:
    if identity.model_checksum != model.checksum:
        raise ArtifactError(
            f"{uri}: its face was fitted with {identity.model_id} "
            f"({identity.model_checksum[:12]}), the configured model is {model.model_id} "
            f"({model.checksum[:12]}): coefficients are not interchangeable; set model=... to the "
            "one of the fit"
        )


def device_of(config: RenderConfig) -> str:
    """Return the device that the launch settings ask for."""
    return "cuda" if config.launch.gpus_per_worker > 0 else "cpu"


def load_inputs(config: RenderConfig) -> Inputs:
    """Load the identity and the speech of a render, checking the cheap things first."""
    speech = None
    if config.speech is not None:
        speech = load_speech(config.speech, fps=config.fps, max_frames=config.max_frames)
    portrait, model, face = _load_face(config, "cpu")
    return Inputs(portrait, model, face, speech)


def build_renderer(config: RenderConfig) -> FrameRenderer:
    """Return the renderer of a worker, on the device that the launch settings ask for."""
    portrait, _, face = _load_face(config, device_of(config))
    return FrameRenderer(portrait, face, build_look(config))


def _load_face(config: RenderConfig, device: str) -> tuple[Portrait, MorphableModel, PortraitFace]:
    model = load_model(config.model).to(device)
    portrait = load_portrait(config.identity, model, device)
    face = PortraitFace(
        model,
        portrait.coefficients,
        portrait.cam2world,
        tan_half_fov=tan_half_fov(portrait.generator.spec.fov_deg),
    )
    return portrait, model, face


def build_look(config: RenderConfig) -> Look:
    """Return how frames are made."""
    warp = config.warp
    mouth = MouthInterior() if config.mouth_interior == "darken" else None
    if isinstance(warp, Original):
        return Look(OriginalWarpSettings(warp.stride), calibrate_depth=False, mouth=mouth)
    assert isinstance(warp, WorldLocked)
    settings = WarpSettings(
        linear=warp.interpolation == "linear",
        neighbours=warp.neighbours,
        falloff_radius=warp.falloff_radius,
        ramp_start=warp.ramp_start,
        ramp_end=warp.ramp_end,
    )
    return Look(settings, calibrate_depth=warp.calibrate_depth, mouth=mouth)


def build_plan(config: RenderConfig, inputs: Inputs) -> FramePlan:
    """Return what each frame shows."""
    expression = _expressions(config, inputs)
    count = len(expression)
    cameras = _cameras(config, inputs.portrait.cam2world, count)
    landmarks = torch.cat([inputs.face.move(part)[1] for part in expression.split(256)])
    if inputs.speech is None:
        energy = np.zeros(count, np.float32)
    else:
        energy = speech_energy(inputs.speech.wave, MODEL_RATE_HZ, num_frames=count, fps=config.fps)
    return FramePlan(expression, cameras, mouth_opening(landmarks), energy, config.fps)


def _expressions(config: RenderConfig, inputs: Inputs) -> Tensor:
    source, neutral, model = config.expression, inputs.face.neutral, inputs.model
    if isinstance(source, SpeechSource):
        assert inputs.speech is not None
        drive = SpeechDrive(source.scale, source.feedback, source.neutral)
        track = from_speech(
            load_checkpoint(source.checkpoint),
            inputs.speech.wave,
            num_frames=inputs.speech.num_frames,
            fps=config.fps,
            reference=neutral,
            drive=drive,
        )
    else:
        assert isinstance(source, FitsSource)
        track = from_fits(
            source.fits,
            source.clip_id,
            fps=config.fps,
            source_fps=source.source_fps,
            reference=neutral,
            scale=source.scale,
        )
        limits = [config.max_frames, inputs.speech.num_frames if inputs.speech else None]
        track = track[: min([len(track), *(n for n in limits if n is not None)])]
    track = smooth(track, config.smoothing_window)
    track = clamp_bounds(track, model.expression_lower, model.expression_upper)
    if config.blink == "random":
        track = add_blinks(track, model.expression_names, fps=config.fps, seed=config.seed)
    return track


def _cameras(config: RenderConfig, cam2world: Tensor, count: int) -> Tensor:
    pose = config.pose
    if isinstance(pose, FixedPose):
        return cam2world.expand(count, 4, 4).clone()
    phase = 2 * torch.pi * torch.arange(count, dtype=torch.float64) / config.fps / pose.period_s
    if isinstance(pose, OrbitPose):
        return orbit_cameras_of(pose, cam2world, phase)
    return turn_cameras(cam2world, (torch.sin(phase) * np.deg2rad(pose.yaw_deg)).float())


def orbit_cameras_of(pose: OrbitPose, cam2world: Tensor, phase_rad: Tensor) -> Tensor:
    """Return the cameras `[T, 4, 4]` of an orbit about `cam2world [4, 4]` at phases `[T]`."""
    return circle_cameras(
        cam2world,
        phase_rad.to(cam2world.dtype),
        yaw_rad=float(np.deg2rad(pose.yaw_deg)),
        pitch_rad=float(np.deg2rad(pose.pitch_deg)),
    )
