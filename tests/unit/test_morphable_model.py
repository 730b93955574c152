"""The open head, the BFM reader, coefficients, regions."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from nfs.errors import InputError
from nfs.morphable import head_cache, makehuman, open_head
from nfs.morphable.coefficients import NUM_COEFFICIENTS, PACKED_SIZES, Coefficients
from nfs.morphable.head_sampling import signed_axes, stable_uniforms
from nfs.morphable.loading import check_same_model, load_model
from nfs.morphable.model import MorphableModel
from nfs.morphable.regions import inside_polygon


@pytest.fixture(scope="module")
def head() -> MorphableModel:
    return load_model()


def test_package_import_is_light():
    code = "import sys, nfs.morphable; assert not {'torch', 'scipy', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_open_head_has_the_frozen_layout(head):
    assert head.model_id == "open_head"
    assert len(head.checksum) == 64
    assert head.mean_shape.shape == (4834, 3)
    assert head.identity_basis.shape == (4834, 3, 80)
    assert head.expression_basis.shape == (4834, 3, 64)
    assert head.texture_basis.shape == (4834, 3, 80)
    assert head.faces.shape == (9528, 3)
    assert len(head.expression_names) == len(set(head.expression_names)) == 64
    assert head.mean_shape.mean(0).abs().max() < 1e-5
    assert not head.state_dict()


def test_open_head_axes_point_the_right_way(head):
    landmarks = head.landmarks(torch.zeros(1, 80), torch.zeros(1, 64))[0]
    assert landmarks[36:42, 0].mean() < landmarks[42:48, 0].mean()  # +x: the subject's left
    assert landmarks[8, 1] < landmarks[27, 1]  # y up
    assert landmarks[30, 2] > landmarks[[0, 16], 2].max()  # z towards the camera


def test_jaw_open_opens_the_mouth(head):
    expression = torch.zeros(2, 64)
    expression[1, head.expression_names.index("jawOpen")] = 1
    closed, opened = head.landmarks(torch.zeros(2, 80), expression)
    gap = opened[62, 1] - opened[66, 1] - (closed[62, 1] - closed[66, 1])
    assert gap > 0.1


def test_checksum_is_stable_and_names_the_sources(head):
    assert load_model().checksum == head.checksum
    assets = makehuman.locate_assets()
    assert head_cache.head_checksum(makehuman.hash_sources(assets)) == head.checksum
    assert head_cache.head_checksum("other sources") != head.checksum


def test_cached_head_meets_the_published_probe():
    arrays, _, _ = head_cache.load_open_head()
    source_hash = makehuman.hash_sources(makehuman.locate_assets())
    open_head.check_probe(arrays, source_hash)
    flipped = {**arrays, "identity_basis": -arrays["identity_basis"]}
    with pytest.raises(InputError, match="differs from the published one in identity_basis"):
        open_head.check_probe(flipped, source_hash)


def test_damaged_cache_is_noticed_and_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "open_head-x"
    folder.mkdir()
    (folder / head_cache.TENSORS).write_bytes(b"damaged")
    (folder / head_cache.METADATA).write_text('{"content_sha256": "0"}')
    small = open_head.HeadData(
        {"mean_shape": np.zeros((2, 3), np.float32)}, ("a",), {"identity_variance_explained": 1.0}
    )
    monkeypatch.setattr(open_head, "build_open_head", lambda _: small)
    monkeypatch.setattr(open_head, "check_probe", lambda *_: None)
    for _ in range(2):  # the second build finds the first one's folder and leaves it
        head_cache._build(tmp_path, folder, "sources", "checksum")
        assert head_cache._is_intact(folder)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_coefficients_of_another_model_are_refused(head):
    check_same_model(head, model_id="open_head", checksum=head.checksum, where="fits")
    with pytest.raises(InputError, match="runs/x/fits: coefficients belong to bfm 0123"):
        check_same_model(head, model_id="bfm", checksum="0123", where="runs/x/fits")


def test_missing_model_file_is_an_input_error():
    with pytest.raises(InputError, match="no such file"):
        load_model("/nowhere/BFM_model_front.mat")


def test_contours_are_closed_rings_around_the_landmarks(head):
    groups = head.vertex_groups
    outer = head.mean_shape[groups["lips_outer"], :2].numpy()
    inner = head.mean_shape[groups["lips_inner"]].mean(0)[None, :2].numpy()
    assert inside_polygon(inner, outer).all()
    steps = np.linalg.norm(np.roll(outer, -1, axis=0) - outer, axis=1)
    assert steps.max() < 0.08
    assert len(set(groups["lips_outer"].tolist())) == len(groups["lips_outer"])
    assert {"lips", "eyelids", "front", "inner_mouth", "skin", "tongue"} <= set(groups)


def test_inside_polygon():
    square = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], float)
    points = np.array([[1, 1], [3, 1], [1, -0.1], [0.1, 1.9]])
    assert inside_polygon(points, square).tolist() == [True, False, False, True]


def test_stable_uniforms_are_the_published_stream():
    draws = stable_uniforms(0, 2, 2)
    assert draws == pytest.approx(np.array([[0.63696169, 0.26978671], [0.04097352, 0.01652764]]))


def test_signed_axes_pair_opposites_and_sides():
    names = ["chin/chin-width-decr", "chin/chin-width-incr", "asym/eye-l", "asym/eye-r", "nose/x-y"]
    assert signed_axes(names) == [
        ("chin/chin-width-decr", "chin/chin-width-incr"),
        ("asym/eye-l", "asym/eye-r"),
        ("nose/x-y", None),
    ]


@given(st.integers(0, 5), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_pack_and_unpack_are_inverse(rows, seed):
    packed = torch.randn(rows, NUM_COEFFICIENTS, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(Coefficients.unpack(packed).pack(), packed)


def test_packed_layout_is_bfm():
    packed = torch.arange(257.0)[None]
    parts = Coefficients.unpack(packed)
    assert NUM_COEFFICIENTS == 257
    assert parts.expression[0, 0] == 80
    assert parts.rotation.tolist() == [[224, 225, 226]]
    assert parts.lighting[0, 0] == 227
    assert parts.translation.tolist() == [[254, 255, 256]]


def test_coefficients_refuse_wrong_shapes():
    with pytest.raises(ValueError, match=r"\[B, 257\]"):
        Coefficients.unpack(torch.zeros(2, 256))
    parts = {name: torch.zeros(2, width) for name, width in PACKED_SIZES.items()}
    with pytest.raises(ValueError, match=r"Coefficients.texture has shape \(3, 80\)"):
        Coefficients(**{**parts, "texture": torch.zeros(3, 80)})


def test_coefficient_rows_can_be_selected():
    packed = torch.randn(4, 257)
    chosen = Coefficients.unpack(packed)[torch.tensor([2, 0])]
    assert torch.equal(chosen.pack(), packed[[2, 0]])
    assert len(chosen) == 2


def bfm_arrays(count: int = 90) -> dict[str, np.ndarray]:
    """A tiny model of the right shapes: a curved grid, random bases."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-1, 1, 10), np.linspace(-1, 1, count // 10))
    points = np.stack([x, y, 1 - x**2 - y**2], -1).reshape(-1, 3) + 0.3
    corner = (np.arange(count // 10 - 1)[:, None] * 10 + np.arange(9)).ravel() + 1
    tri = np.concatenate(
        [np.c_[corner, corner + 1, corner + 11], np.c_[corner, corner + 11, corner + 10]]
    )
    return {
        "meanshape": points.reshape(1, -1),
        "meantex": np.full((1, 3 * count), 127.5),
        "idBase": rng.normal(size=(3 * count, 80)),
        "exBase": rng.normal(size=(3 * count, 64)),
        "texBase": rng.normal(size=(3 * count, 80)),
        "tri": tri.astype(np.float32),
        "keypoints": (np.arange(68) + 1.0)[None],
        "frontmask2_idx": (np.arange(40) + 1.0)[:, None],
        "tri_mask2": np.array([[1.0, 2.0, 40.0]]),
        "skinmask": (np.arange(count) < 30).astype(np.float32)[None],
    }


@pytest.mark.parametrize("name", ["BFM_model_front.mat", "BFM09_model_info.mat"])
def test_bfm_files_of_both_names_load(tmp_path, name):
    arrays = bfm_arrays()
    savemat(tmp_path / name, arrays)
    model = load_model(tmp_path)
    mean = arrays["meanshape"].reshape(-1, 3)
    assert model.model_id == "bfm"
    assert np.allclose(model.mean_shape, mean - mean.mean(0), atol=1e-6)
    assert model.faces.min() == 0
    assert torch.allclose(model.mean_texture, torch.full((90, 3), 0.5))
    assert model.vertex_groups["skin"].tolist() == list(range(30))
    assert model.front_faces.tolist() == [[0, 1, 39]]
    assert torch.isinf(model.expression_upper).all()
    savemat(tmp_path / "copy.mat", arrays)
    assert load_model(tmp_path / "copy.mat").checksum == model.checksum


def test_bad_bfm_files_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="holds neither"):
        load_model(tmp_path)
    (tmp_path / "text.mat").write_text("no")
    with pytest.raises(InputError, match="not readable as a MATLAB file"):
        load_model(tmp_path / "text.mat")
    arrays = bfm_arrays()
    savemat(tmp_path / "a.mat", {k: v for k, v in arrays.items() if k != "exBase"})
    with pytest.raises(InputError, match="missing exBase"):
        load_model(tmp_path / "a.mat")
    savemat(tmp_path / "b.mat", {**arrays, "idBase": arrays["idBase"][:-1]})
    with pytest.raises(InputError, match="idBase has"):
        load_model(tmp_path / "b.mat")
    savemat(tmp_path / "c.mat", {**arrays, "tri": arrays["tri"] + 80})
    with pytest.raises(InputError, match="outside 1"):
        load_model(tmp_path / "c.mat")
