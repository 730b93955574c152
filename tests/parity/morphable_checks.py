"""Checks of the morphable model against fixtures in the format of `parity/morphable` (spec 2, 5).

Whatever files a folder has are compared; model sizes, batch sizes and image sizes come from the
arrays.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfs.morphable.bfm import FILE_NAMES
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.lighting import irradiance
from nfs.morphable.loading import load_model
from nfs.morphable.losses import (
    coefficient_penalty,
    feature_loss,
    fitting_landmark_weights,
    gray_light_penalty,
    landmark_loss,
    photometric_loss,
    recon_landmark_weights,
    reflectance_loss,
)
from nfs.morphable.model import MorphableModel
from nfs.morphable.normals import vertex_normals
from nfs.morphable.photometric_fit import DEFAULT_WEIGHTS, PhotometricSettings, fit_photometric
from nfs.morphable.projection import CAMERA_DISTANCE, FOCAL_224, REFERENCE_SIZE_PX, to_screen
from nfs.morphable.rasterizer import rasterize
from nfs.morphable.shading import interpolate, posed_vertices, vertex_colours
from tests.parity import recon_checks
from tests.parity.replay import Check, check

Arrays = Mapping[str, Tensor]
RELATIVE = 1e-5
LANDMARK_PX = 1e-4
EDGE_PIXELS = 3
GRADIENT = 1e-3


def checks(folder: Path) -> dict[str, Check]:
    """Return {name: check} for the fixture files that the folder has."""
    results: dict[str, Check] = {}
    models = _models(folder)
    for name, model in models.items():
        results |= _loader(folder / "BFM" / name, model)
    if models:
        model = next(iter(models.values()))
        for file, compare in (("deep3d_outputs", _deep3d), ("fitting_outputs", _fitting)):
            if (folder / f"{file}.npz").is_file():
                results |= compare(model, _load(folder / f"{file}.npz"))
    return results | _face(folder) | recon_checks.checks(folder)


def _face(folder: Path) -> dict[str, Check]:
    if importlib.util.find_spec("tests.parity.face_checks") is None:
        return {}
    from tests.parity import face_checks

    return dict(face_checks.checks(folder))


def _models(folder: Path) -> dict[str, MorphableModel]:
    names = [name for name in FILE_NAMES if (folder / "BFM" / name).is_file()]
    return {name: load_model(folder / "BFM" / name) for name in names}


def _load(file: Path) -> dict[str, Tensor]:
    with np.load(file, allow_pickle=False) as data:
        arrays = {k: data[k] for k in data.files}
    return {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items() if v.dtype.kind in "fiub"}


def _loader(file: Path, model: MorphableModel) -> dict[str, Check]:
    """Compare the loaded arrays with the file, read here independently."""
    from scipy.io import loadmat

    raw = loadmat(str(file))
    mean = raw["meanshape"].reshape(-1, 3).astype(np.float64)
    expected = {
        "mean_shape": mean - mean.mean(0),
        "identity_basis": raw["idBase"].reshape(len(mean), 3, -1),
        "expression_basis": raw["exBase"].reshape(len(mean), 3, -1),
        "mean_texture": raw["meantex"].reshape(-1, 3) / 255.0,
        "texture_basis": raw["texBase"].reshape(len(mean), 3, -1) / 255.0,
    }
    indices = {
        "faces": raw["tri"] - 1,
        "landmark_triangles": np.repeat(raw["keypoints"].reshape(-1, 1) - 1, 3, axis=1),
    }
    results = {}
    for name, array in expected.items():
        results[name] = check(_relative(getattr(model, name), torch.from_numpy(array)), 1e-6)
    for name, array in indices.items():
        wrong = (getattr(model, name).numpy() != array.astype(np.int64)).sum()
        results[name] = check(float(wrong), 0.0)
    skin = np.flatnonzero(raw["skinmask"].ravel() > 0)
    same = np.array_equal(model.vertex_groups["skin"].numpy(), skin)
    results["skin"] = check(float(not same), 0.0)
    return {f"loader/{file.stem}/{name}": result for name, result in results.items()}


def _deep3d(model: MorphableModel, ref: Arrays) -> dict[str, Check]:
    size = REFERENCE_SIZE_PX
    coefficients = Coefficients.unpack(ref["coeffs"])
    rotation = coefficients.rotation_matrix
    shape = model.vertices(coefficients.identity, coefficients.expression)
    posed = posed_vertices(model, coefficients)
    normals = vertex_normals(shape, model.faces, weighting="unit")
    turned = normals @ rotation.transpose(1, 2)
    albedo = model.albedo(coefficients.texture)
    screen = to_screen(posed, size)
    projected = _flip(screen[..., :2], size)
    camera = torch.cat([posed[..., :2], CAMERA_DISTANCE - posed[..., 2:]], dim=-1)
    landmarks = _flip(to_screen(model.landmarks_of(posed), size)[..., :2], size)
    direct = model.landmarks(coefficients.identity, coefficients.expression)
    ours = {
        "shape": shape,
        "rot": rotation.transpose(1, 2),
        "texture": albedo,
        "norm": normals,
        "norm_rot": turned,
        "transformed": posed,
        "vertex_cam": camera,
        "color": albedo * irradiance(turned, coefficients.lighting),
    }
    results = {name: check(_relative(v, ref[name]), RELATIVE) for name, v in ours.items()}
    results["landmarks_direct"] = check(_relative(direct, model.landmarks_of(shape)), RELATIVE)
    for name, value in (("landmark", landmarks), ("proj", projected)):
        results[name] = check(float((value - ref[name]).abs().max()), LANDMARK_PX)
    results |= _deep3d_losses(model, coefficients, ref, albedo, landmarks)
    return {f"deep3d/{name}": result for name, result in results.items()}


def _deep3d_losses(
    model: MorphableModel,
    coefficients: Coefficients,
    ref: Arrays,
    albedo: Tensor,
    landmarks: Tensor,
) -> dict[str, Check]:
    values: dict[str, Callable[[], Tensor]] = {
        "loss_lm": lambda: landmark_loss(landmarks, ref["gt_lm"], recon_landmark_weights()),
        "loss_reg": lambda: coefficient_penalty(coefficients),
        "loss_gamma": lambda: gray_light_penalty(coefficients.lighting),
        "loss_reflc": lambda: reflectance_loss(albedo, _skin(model)),
        "loss_photo": lambda: photometric_loss(
            ref["photo_A"].permute(0, 2, 3, 1),
            ref["photo_B"].permute(0, 2, 3, 1),
            ref["photo_mask"][:, 0],
        ),
        "loss_feat": lambda: feature_loss(ref["feat_a"], ref["feat_b"]),
    }
    return {
        name: check(_relative(value(), ref[name]), RELATIVE)
        for name, value in values.items()
        if name in ref
    }


def _fitting(model: MorphableModel, ref: Arrays) -> dict[str, Check]:
    packed = ref["coeffs"].clone().requires_grad_()
    coefficients = Coefficients.unpack(packed)
    size = ref["gt_img"].shape[1]
    posed = posed_vertices(model, coefficients)
    # The original keeps the focal length of 224 px at every image size (spec 2.6).
    screen = to_screen(posed, size, focal_length_px=FOCAL_224)
    colours = vertex_colours(model, coefficients, normal_weighting="area")
    landmarks = to_screen(model.landmarks_of(posed), size, focal_length_px=FOCAL_224)[..., :2]
    results = {
        "vs": check(_relative(posed, ref["vs"]), RELATIVE),
        "texture": check(
            _relative(model.albedo(coefficients.texture) * 255, ref["texture"]), RELATIVE
        ),
        "color": check(_relative(colours * 255, ref["color"]), RELATIVE),
        "lms_proj": check(float((landmarks.detach() - ref["lms_proj"]).abs().max()), LANDMARK_PX),
    }
    if "lms_proj_256" in ref:
        other = to_screen(model.landmarks_of(posed), 256, focal_length_px=FOCAL_224)[..., :2]
        worst = float((other.detach() - ref["lms_proj_256"]).abs().max())
        results["lms_proj_256"] = check(worst, LANDMARK_PX)
    fragments = rasterize(screen, model.faces, size, backend="numba")
    results |= _raster(fragments.pix_to_face, fragments.barycentric, fragments.depth, ref)
    results |= _pytorch3d(screen[:1], model.faces, size)
    image = interpolate(screen, colours, model.faces, fragments.pix_to_face).clamp(0, 1)
    results |= _rendering(image, fragments.mask, ref)
    losses = {
        "photo": photometric_loss(
            image, ref["gt_img"].float() / 255, fragments.mask.float(), eps=1e-20, over="image"
        ),
        "lm": landmark_loss(landmarks / size, ref["gt_lms"] / size, fitting_landmark_weights()),
        "reflectance": reflectance_loss(model.albedo(coefficients.texture), _skin(model)),
        "gamma": gray_light_penalty(coefficients.lighting),
        "id": coefficients.identity.square().sum(),
    }
    for name, loss in losses.items():
        gradient = torch.autograd.grad(loss, packed, retain_graph=True)[0]
        expected = ref[f"grad_{name}"]
        error = float((gradient - expected).norm() / expected.norm())
        results[f"loss_{name}"] = check(_relative(loss, ref[f"loss_{name}"]), RELATIVE)
        results[f"grad_{name}"] = check(error, GRADIENT)
    results |= _fitting_trace(model, ref)
    return {f"fitting/{name}": result for name, result in results.items()}


def _fitting_trace(model: MorphableModel, ref: Arrays) -> dict[str, Check]:
    """Repeat the recorded Adam steps from zero coefficients (spec 2.9)."""
    if "fit_rigid_loss" not in ref:
        return {}
    images = ref["fit_img"].float() / 255
    fit = fit_photometric(
        model,
        images,
        ref["fit_lms"],
        start=Coefficients.zeros(len(images)),
        settings=PhotometricSettings(
            rigid_steps=len(ref["fit_rigid_loss"]),
            joint_steps=len(ref["fit_nonrigid_parts"]),
            focal_length_px=FOCAL_224,
        ),
    )
    rigid = torch.tensor([row["total"] for row in fit.rigid.history])
    parts = [
        [row[name] * weight for name, weight in DEFAULT_WEIGHTS.items()] + [row["total"]]
        for row in fit.joint.history
    ]
    return {
        "trace_rigid": check(_relative(rigid, ref["fit_rigid_loss"]), GRADIENT),
        "trace_joint": check(_relative(torch.tensor(parts), ref["fit_nonrigid_parts"]), GRADIENT),
        "trace_result": check(
            _relative(fit.coefficients.pack(), ref["fit_after_nonrigid"]), GRADIENT
        ),
    }


def _raster(face: Tensor, barycentric: Tensor, depth: Tensor, ref: Arrays) -> dict[str, Check]:
    expected = ref["face_of"].long()
    same = face == expected
    hit = same & (face >= 0)
    worst = (~same).flatten(1).sum(1).max()
    bary = (barycentric - ref["bary"].float())[hit].abs().max()
    return {
        "face_of": check(float(worst), EDGE_PIXELS),
        "bary": check(float(bary), 1e-3),  # the file is float16
        "zbuf": check(_relative(depth[hit], ref["zbuf"][hit]), RELATIVE),
    }


def _rendering(image: Tensor, mask: Tensor, ref: Arrays) -> dict[str, Check]:
    difference = (image.detach() * 255 - ref["rendered_rgb"].float()).abs().amax(-1)
    wrong_mask = (mask != ref["mask"]).flatten(1).sum(1).max()
    # An edge pixel may show another triangle; every other pixel is within the float16 of the file.
    far = (difference > 0.3).flatten(1).sum(1).max()
    return {
        "mask": check(float(wrong_mask), EDGE_PIXELS),
        "rendered_rgb_mean": check(float(difference.mean()), 0.1),
        "rendered_rgb_pixels": check(float(far), EDGE_PIXELS),
    }


def _pytorch3d(screen: Tensor, faces: Tensor, size: int) -> dict[str, Check]:
    """Compare the two rasterisers of this project on a small picture."""
    if importlib.util.find_spec("pytorch3d") is None:
        return {}
    small = 64
    scaled = screen.detach() * torch.tensor([small / size, small / size, 1.0])
    ours = rasterize(scaled, faces, small, backend="numba")
    theirs = rasterize(scaled, faces, small, backend="pytorch3d")
    same = ours.pix_to_face == theirs.pix_to_face
    hit = same & ours.mask
    error = (ours.barycentric - theirs.barycentric)[hit].abs().max()
    return {
        "pytorch3d_face": check(float((~same).sum()), EDGE_PIXELS),
        "pytorch3d_bary": check(float(error), 1e-3),
    }


def _skin(model: MorphableModel) -> Tensor:
    skin = torch.zeros(model.num_vertices)
    skin[model.vertex_groups["skin"]] = 1
    return skin


def _flip(points: Tensor, size: int) -> Tensor:
    return torch.stack([points[..., 0], size - points[..., 1]], dim=-1)


def _relative(ours: Tensor, expected: Tensor) -> float:
    scale = expected.double().abs().max().clamp_min(1e-12)
    return float((ours.detach().double() - expected.double()).abs().max() / scale)
