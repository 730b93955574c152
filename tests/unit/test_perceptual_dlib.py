import hashlib
import os

import numpy as np
import pytest
import torch

from nfs.errors import InputError
from nfs.perceptual import dlib_face
from nfs.perceptual.dlib_face import DlibDistance, face_chip, find_source
from nfs.perceptual.dlib_file import read_layers
from nfs.perceptual.protocol import identity_similarity


@pytest.fixture(scope="module")
def source_bytes():
    return find_source().read_bytes()


@pytest.fixture(scope="module")
def backend():
    return DlibDistance.load()


def noise_images(size_px, count=2):
    return (
        torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )


def test_the_installed_file_is_the_published_one(source_bytes):
    assert hashlib.sha256(source_bytes).hexdigest() == dlib_face.SOURCE_SHA256


def test_every_byte_of_the_file_is_walked(source_bytes):
    layers = read_layers(source_bytes)
    assert [layer.kind for layer in layers].count("conv") == 29
    assert sum(layer.values.size for layer in layers) == 5_614_592
    with pytest.raises(InputError, match="early"):
        read_layers(source_bytes[:-1])
    with pytest.raises(InputError, match="at byte"):
        read_layers(source_bytes + b"\x01\x01")
    with pytest.raises(InputError, match="not a dlib metric network"):
        read_layers(b"\x01\x02" + source_bytes[2:])


def test_embeddings_equal_dlib(backend):
    dlib = pytest.importorskip("dlib")
    peer = dlib.face_recognition_model_v1(os.fspath(find_source()))
    rng = np.random.default_rng(0)
    for scale in (255, 40):
        chip = rng.integers(0, scale, (150, 150, 3), dtype=np.uint8)
        expected = np.array(peer.compute_face_descriptor(chip))
        rgb = torch.from_numpy(chip).permute(2, 0, 1)[None].float()
        embedding, taps = backend.net(rgb)
        assert np.abs(embedding[0].numpy() - expected).max() < 1e-6
        assert [tuple(tap.shape[1:]) for tap in taps][-1] == (256, 2, 2)
        assert len(taps) == 15


def test_conversion_is_cached_and_survives_a_torn_cache(tmp_path, monkeypatch, backend):
    monkeypatch.setenv("NFS_CACHE", str(tmp_path))
    weights, checksum = dlib_face.load_weights()
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    again, _ = dlib_face.load_weights()
    assert file.stat().st_mtime_ns == before
    assert checksum == dlib_face.SOURCE_SHA256
    assert all(torch.equal(again[key], value) for key, value in weights.items())
    assert set(weights) == set(backend.net.state_dict())


def test_a_wrong_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("NFS_CACHE", str(tmp_path))
    wrong = tmp_path / "wrong.dat"
    wrong.write_bytes(b"nonsense")
    monkeypatch.setattr(dlib_face, "find_source", lambda: wrong)
    with pytest.raises(InputError, match=r"wrong\.dat: sha256"):
        dlib_face.load_weights()


def test_distance_grows_with_damage_and_passes_gradients(backend):
    image = noise_images(64, 1)
    features = backend.features(image)
    assert backend.distance(features, features).item() == 0
    little = backend.distance(features, backend.features(image * 0.98)).item()
    much = backend.distance(features, backend.features(image * 0.3)).item()
    assert 0 < little < much
    moving = (image * 0.5).requires_grad_()
    backend.distance(features, backend.features(moving)).sum().backward()
    assert moving.grad is not None
    assert moving.grad.isfinite().all()
    assert all(p.grad is None for p in backend.parameters())


def test_distance_is_finite_where_the_network_is_silent(backend):
    black = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)
    value = backend.distance(backend.features(black), backend.features(noise_images(32, 1)))
    value.sum().backward()
    assert black.grad is not None
    assert black.grad.isfinite().all()


def test_face_chip_is_the_lower_middle_in_0_255():
    image = -torch.ones(1, 3, 100, 100)
    image[:, :, 26:95, 17:85] = 1
    chip = face_chip(image)
    assert chip.shape == (1, 3, 150, 150)
    assert chip[..., 5:-5, 5:-5].min() == 255


def test_identity_similarity_is_one_for_itself(backend):
    embedding = backend.embed(noise_images(48))
    assert torch.allclose(identity_similarity(embedding, embedding), torch.ones(2))
