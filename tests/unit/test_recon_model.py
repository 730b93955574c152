"""The coefficient regressor: network, original weights, alignment, augmentation, losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision

from nfs.errors import InputError
from nfs.face.align import (
    ARCFACE_TEMPLATE_INDEX,
    arcface_crop_transform,
    deep3d_standard_pixels,
    deep3d_transform,
    five_points,
)
from nfs.media.images import apply_affine, invert_affine
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.loading import load_model
from nfs.morphable.losses import recon_landmark_weights
from nfs.morphable.recon.alignment import (
    MIRRORED_LANDMARKS,
    crop,
    frame_to_input,
    mirror,
    published_alignment,
    published_crop,
    published_matrix,
    repose,
)
from nfs.morphable.recon.augment import Augmentation, Change, compose, move_landmarks
from nfs.morphable.recon.identity import warp
from nfs.morphable.recon.losses import ReconObjective, ReconWeights
from nfs.morphable.recon.network import (
    HEAD_SIZES,
    ReconNet,
    ReconSpec,
    aligned_translation,
    check_network_model,
    clamp_expressions,
    folded_state,
    spec_for,
)
from nfs.morphable.recon.original import load_imagenet_trunk, with_spec
from nfs.morphable.recon.skin import skin_probability
from nfs.morphable.shading import render
from nfs.pretrained import load_original
from tests.unit.recon_fakes import heads, landmarks_px

SIZE = 64


@pytest.fixture(scope="module")
def model():
    return load_model()


def original_state(linear: bool = False) -> dict[str, torch.Tensor]:
    """A state dict under the original's names, made without our network."""
    torch.manual_seed(0)
    trunk = torchvision.models.resnet18(num_classes=257)
    state = {f"backbone.{k}": v for k, v in trunk.state_dict().items()}
    if linear:
        return state
    state = {k: v for k, v in state.items() if ".fc." not in k}
    for i, size in enumerate((80, 64, 80, 3, 27, 2, 1)):
        state[f"final_layers.{i}.weight"] = 0.01 * torch.randn(size, 512, 1, 1)
        state[f"final_layers.{i}.bias"] = torch.randn(size)
    return state


def test_an_untrained_network_predicts_the_mean_face(model):
    network = ReconNet(spec_for(model, backbone="resnet18", image_size_px=SIZE)).eval()
    raw = network(torch.rand(2, 3, SIZE, SIZE))
    assert raw.shape == (2, 257)
    assert raw.abs().max() == 0
    coefficients = network.unpack(raw)
    assert coefficients.identity.abs().max() == 0
    assert coefficients.translation[0].tolist() == pytest.approx(aligned_translation(model))
    # It stands where the alignment puts faces.
    points = landmarks_px(model, coefficients, 224)[0].detach().double().numpy()
    assert np.abs(five_points(points) - deep3d_standard_pixels(224)).max() < 4
    assert deep3d_transform(five_points(points))[0, 0] == pytest.approx(1, abs=0.02)


def test_outputs_go_to_the_right_coefficients(model):
    spec = replace(spec_for(model, backbone="resnet18"), base_translation=(0.0, 0.0, 0.5))
    network = ReconNet(spec)
    raw = torch.arange(257.0)[None]
    c = network.unpack(raw)
    assert sum(HEAD_SIZES) == 257
    assert c.identity[0, 0] == 0
    assert c.texture[0, 0] == 144
    assert c.rotation[0].tolist() == [224, 225, 226]
    assert c.lighting[0, 0] == 227
    assert c.translation[0].tolist() == [254, 255, 256.5]
    gaze = model.expression_names.index("eyeLookInLeft")
    assert c.expression[0, gaze] == 0
    jaw = model.expression_names.index("jawOpen")
    assert c.expression[0, jaw] == 80 + jaw
    assert clamp_expressions(model, c).expression[0, jaw] == 1


@pytest.mark.parametrize("wrapping", ["plain", "nested", "release"])
def test_original_weights_give_the_originals_output(wrapping):
    state = original_state()
    wrapped = {
        "plain": state,
        "nested": {"net_recon": state, "opt_00": {"state": {}}, "sched_00": {"last_epoch": 3}},
        "release": {f"face_3drecon.{k}": v for k, v in state.items()}
        | {"audio2exp.x": torch.zeros(1)},
    }[wrapping]
    network = load_original("recon/resnet18", wrapped, {"net_recon": "resnet18"})
    trunk = torchvision.models.resnet18()
    trunk.fc = torch.nn.Identity()
    trunk.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    )
    images = torch.rand(2, 3, SIZE, SIZE)
    features = trunk.eval()(images)
    expected = torch.cat(
        [
            features @ state[f"final_layers.{i}.weight"][..., 0, 0].T
            + state[f"final_layers.{i}.bias"]
            for i in range(7)
        ],
        1,
    )
    assert not network.training
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }


def test_the_last_layer_variant_is_recognised():
    network = load_original("recon/resnet18", original_state(linear=True), {"use_last_fc": True})
    assert network.spec.output == "linear"
    assert network(torch.rand(2, 3, SIZE, SIZE)).shape == (2, 257)
    with pytest.raises(InputError, match="use_last_fc=False"):
        load_original("recon/resnet18", original_state(linear=True), {"use_last_fc": False})


def test_weights_that_do_not_fit_are_refused():
    state = original_state()
    short = {k: v for k, v in state.items() if k != "final_layers.3.bias"}
    with pytest.raises(InputError, match=r"1 missing .*final_layers\.3\.bias"):
        load_original("recon/resnet18", short)
    with pytest.raises(InputError, match="1 unknown"):
        load_original("recon/resnet18", state | {"backbone.extra": torch.zeros(1)})
    with pytest.raises(InputError, match=r"final_layers\.5\.bias is \[3\], expected \[2\]"):
        load_original("recon/resnet18", state | {"final_layers.5.bias": torch.zeros(3)})
    with pytest.raises(InputError, match="unknown options"):
        load_original("recon/resnet18", state, {"focal": 1015})


def test_old_files_without_batch_counters_load():
    state = {k: v for k, v in original_state().items() if "num_batches" not in k}
    load_original("recon/resnet18", state)


def test_an_epoch_file_is_read_and_needs_bfm(model, tmp_path):
    file = tmp_path / "epoch_20.pth"
    torch.save({"net_recon": original_state(), "opt_00": {"lr": 1e-4}, "sched_00": {}}, file)
    network = load_original("recon/resnet18", file)
    assert network.base_translation.abs().max() == 0
    with pytest.raises(InputError, match="coefficients belong to bfm"):
        check_network_model(network.spec, model, str(file))


@pytest.mark.parametrize("output", ["heads", "linear"])
def test_the_originals_format_says_the_same_coefficients(model, output):
    torch.manual_seed(2)
    network = ReconNet(spec_for(model, backbone="resnet18", output=output)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    plain = load_original("recon/resnet18", folded_state(network))
    images = torch.rand(2, 3, SIZE, SIZE)
    expected = network.unpack(network(images)).pack()
    torch.testing.assert_close(plain(images), expected, rtol=1e-4, atol=1e-5)


def test_imagenet_weights_fill_the_trunk_only():
    torch.manual_seed(1)
    state = torchvision.models.resnet18().state_dict()
    network = ReconNet(ReconSpec(backbone="resnet18"))
    load_imagenet_trunk(network, state, "file")
    assert torch.equal(network.backbone.conv1.weight, state["conv1.weight"])
    assert network(torch.rand(1, 3, SIZE, SIZE)).abs().max() == 0
    moved = with_spec(network, ReconSpec(backbone="resnet18", image_size_px=112))
    assert torch.equal(moved.backbone.conv1.weight, state["conv1.weight"])
    with pytest.raises(InputError, match="asks for resnet50"):
        with_spec(network, ReconSpec())


def test_the_exact_alignment_agrees_with_the_published_one(model):
    points = landmarks_px(model, heads(model, 1, 3), 300).double().numpy()
    image = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    for face in points:
        exact = frame_to_input(face, 224)
        published = published_alignment(face, (300, 300))
        yup = np.column_stack([face[:, 0] - 0.5, 300 - face[:, 1] - 0.5])
        theirs = published.landmarks_yup(yup)
        theirs = np.column_stack([theirs[:, 0] + 0.5, 224 - theirs[:, 1] - 0.5])
        assert np.abs(apply_affine(exact, face) - theirs).max() < 1.01
        assert np.abs(apply_affine(published_matrix(published), face) - theirs).max() < 2
        assert published_crop(image, published).shape == (224, 224, 3)


def test_a_crop_is_black_and_marked_outside_the_frame():
    image = np.full((50, 50, 3), 200, np.uint8)
    picture, inside = crop(image, np.array([[1.0, 0, 10], [0, 1, 0]]), 64)
    assert inside[20, 11:59].all()
    assert not inside[:, :9].any()
    assert (picture[~inside] == 0).all()
    assert (picture[20, 12:58] == 200).all()


def test_coefficients_follow_a_similarity_of_the_picture(model):
    coefficients = heads(model, 2, 4)
    points = landmarks_px(model, coefficients, 256).numpy()
    for change in (Change((9, -6), 1.08, -9.0), Change((0, 5), 0.93, 7.0)):
        matrix = compose(change.matrix(224), np.array([[0.9, 0, -3], [0, 0.9, 4]]))
        maps = torch.from_numpy(matrix).float().expand(4, 2, 3)
        moved = repose(coefficients, maps, from_px=256, to_px=224)
        found = landmarks_px(model, moved, 224).numpy()
        assert np.abs(found - apply_affine(matrix, points)).max() < 0.6
        back = torch.from_numpy(invert_affine(matrix)).float().expand(4, 2, 3)
        again = repose(moved, back, from_px=224, to_px=256)
        torch.testing.assert_close(again.pack(), coefficients.pack(), atol=1e-4, rtol=0)


def test_a_mirrored_head_has_the_mirrored_pose_and_light(model):
    coefficients = Coefficients.zeros(2)
    coefficients.rotation[:] = torch.tensor([[0.1, 0.3, -0.1], [0.0, -0.2, 0.05]])
    coefficients.translation[:, 0] = torch.tensor([0.2, -0.1])
    coefficients.lighting[:, 3] = 0.4  # from the side
    flip = Change(flip=True).matrix(SIZE)
    maps = torch.from_numpy(flip).float().expand(2, 2, 3)
    moved = repose(coefficients, maps, from_px=SIZE, to_px=SIZE)
    torch.testing.assert_close(moved.pack(), mirror(coefficients).pack(), atol=1e-5, rtol=0)
    found = landmarks_px(model, moved, SIZE).numpy()
    points = landmarks_px(model, coefficients, SIZE).numpy()
    expected = np.stack([move_landmarks(p, flip) for p in points])
    assert np.abs(found - expected).max() < 0.3  # the mean head is not exactly symmetric
    image, mirrored = (render(model, c, SIZE).image for c in (coefficients, moved))
    assert (image.flip(2) - mirrored).abs().mean() < 0.01
    assert (image - mirrored).abs().mean() > 0.03


def test_augmentation_is_bounded_and_mirrors_landmarks():
    assert (MIRRORED_LANDMARKS[MIRRORED_LANDMARKS] == np.arange(68)).all()
    rng = np.random.default_rng(0)
    changes = [Augmentation(4, 0.2, 5.0, 0.5).draw(rng) for _ in range(200)]
    shifts = np.array([c.shift_px for c in changes])
    assert shifts.min() == -4
    assert shifts.max() == 4
    assert 0.8 <= min(c.scale for c in changes) < 0.85 < 1.15 < max(c.scale for c in changes) <= 1.2
    assert max(abs(c.rotation_deg) for c in changes) <= 5
    assert 0.3 < np.mean([c.flip for c in changes]) < 0.7
    still = Augmentation(0, 0.0, 0.0, 0.0).draw(rng)
    assert np.allclose(still.matrix(112), [[1, 0, 0], [0, 1, 0]])
    assert np.allclose(Change(flip=True).matrix(112), [[-1, 0, 112], [0, 1, 0]])
    # A shift is given at 224 px.
    assert np.allclose(Change(shift_px=(4, 0)).matrix(112)[:, 2], [2, 0])


def test_skin_is_told_from_grass_and_sky():
    colours = torch.tensor([[205, 150, 120], [60, 140, 50], [90, 140, 220], [0, 0, 0]])
    skin = skin_probability(colours.T[None, :, None, :].byte())[0, 0]
    assert skin[0] > 0.9
    assert skin[1:].max() < 0.1


def test_warping_samples_pixel_centres():
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    shift = torch.tensor([[[1.0, 0, 1], [0, 1, 0]]])
    assert warp(images, shift, 4)[0, 0, 0].tolist() == [0, 0, 1, 2]
    half = torch.tensor([[[0.5, 0, 0], [0, 0.5, 0]]])
    assert warp(images, half, 2)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]


def test_arcface_alignment_puts_the_five_points_on_the_template():
    template = ARCFACE_TEMPLATE_INDEX + 0.5
    face = np.zeros((1, 68, 2))
    turn = 1.7 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    for landmarks, point in zip(((36, 39), (42, 45), (30,), (48,), (54,)), template, strict=True):
        face[0, landmarks] = turn @ point + (3, -5)
    found = apply_affine(arcface_crop_transform(face)[0], five_points(face)[0])
    assert found == pytest.approx(template, abs=1e-6)


def batch_of(model, coefficients) -> dict[str, torch.Tensor]:
    shaded = render(model, coefficients, SIZE)
    return {
        "image": (shaded.image.clamp(0, 1) * 255).round().byte().permute(0, 3, 1, 2),
        "inside": torch.ones(len(coefficients), SIZE, SIZE, dtype=torch.bool),
        "landmarks": landmarks_px(model, coefficients, SIZE),
        "fit": coefficients.pack(),
        "fit_pose": torch.ones(len(coefficients)),
        "fit_shape": torch.ones(len(coefficients)),
    }


def test_losses_vanish_at_the_truth_and_reach_every_coefficient(model):
    truth = heads(model, 3, 2)
    weights = ReconWeights(
        feature=0, fit_shape=0.1, fit_coefficients=0.01, fit_texture=0.01, fit_pose=10
    )
    objective = ReconObjective(model, image_size_px=SIZE, weights=weights, mask="face")
    batch = batch_of(model, truth)
    _, terms = objective(truth, batch)
    for name in ("landmark", "fit_shape", "fit_coefficients", "fit_texture", "fit_pose", "bounds"):
        assert terms[name] == pytest.approx(0, abs=1e-9), name
    assert terms["color"] < 0.005  # eight-bit rounding
    packed = (truth.pack() + 0.05).requires_grad_()
    total, terms = objective(Coefficients.unpack(packed), batch)
    expected = sum(getattr(weights, name) * term.item() for name, term in terms.items())
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    gradient = Coefficients.unpack(packed.grad)
    for name in ("identity", "texture", "rotation", "translation", "lighting"):
        assert (getattr(gradient, name) != 0).all(), name
    assert (gradient.expression != 0).float().mean() > 0.9


def test_the_landmark_term_is_measured_at_224_px(model):
    truth, guess = heads(model, 4, 1), heads(model, 5, 1)
    only = ReconWeights(**dict.fromkeys(ReconWeights.__annotations__, 0.0) | {"landmark": 1.0})
    values = []
    for size in (64, 128):
        objective = ReconObjective(model, image_size_px=size, weights=only)
        batch = {"landmarks": landmarks_px(model, truth, size)}
        values.append(objective(guess, batch)[0].item())
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    distance = (landmarks_px(model, truth, 224) - landmarks_px(model, guess, 224)).square().sum(-1)
    assert values[0] == pytest.approx((recon_landmark_weights() * distance).sum().item(), rel=1e-4)


def test_colours_are_compared_on_visible_skin_of_the_front(model):
    truth = heads(model, 6, 1)
    batch = batch_of(model, truth)
    batch["inside"][:, :, : SIZE // 2] = False
    shaded = render(model, truth, SIZE)
    masks = {
        kind: ReconObjective(
            model, image_size_px=SIZE, weights=ReconWeights(), mask=kind
        ).face_mask(shaded, batch)
        for kind in ("face", "skin")
    }
    assert masks["face"][:, :, : SIZE // 2].max() == 0
    assert 0 < masks["face"].sum() < shaded.mask.sum()
    assert (masks["skin"] <= masks["face"]).all()
    assert masks["skin"].sum() > 0.3 * masks["face"].sum()


def test_expressions_beyond_their_bounds_cost(model):
    coefficients = Coefficients.zeros(2)
    jaw = model.expression_names.index("jawOpen")
    coefficients.expression[:, jaw] = torch.tensor([1.5, -0.5])
    only = ReconWeights(**dict.fromkeys(ReconWeights.__annotations__, 0.0) | {"bounds": 1.0})
    objective = ReconObjective(model, image_size_px=SIZE, weights=only)
    assert objective(coefficients, {})[0].item() == pytest.approx(0.25)
