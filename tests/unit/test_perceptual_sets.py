"""Distances between feature sets, and the networks that the features come from."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nfs.config.evaluate import ArcfaceFeatures, FaceFeatures, InceptionFile
from nfs.errors import ConfigError, InputError
from nfs.perceptual.extractors import MetricNames, build_extractor, compare_sets
from nfs.perceptual.frechet import (
    Moments,
    frechet_distance,
    kernel_distance,
    kernel_distance_of_subsets,
)
from nfs.perceptual.inception import InceptionNet
from nfs.perceptual.neighbours import precision_recall


def test_moments_of_parts_equal_those_of_the_whole(rng):
    rows = rng.standard_normal((3000, 5)).astype(np.float32) + 100
    whole = Moments.of(rows)
    parts = Moments.of(rows[:17]) + Moments.of(rows[17:])
    assert np.allclose(whole.mean, rows.astype(np.float64).mean(0), atol=1e-12)
    assert np.allclose(whole.covariance, np.cov(rows.astype(np.float64).T), atol=1e-10)
    assert np.allclose(parts.covariance, whole.covariance, atol=1e-10)
    assert frechet_distance(whole, parts) < 1e-9
    with pytest.raises(ValueError, match="not finite"):
        Moments.of(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize(("num_a", "num_b", "dim"), [(12, 15, 40), (50, 9, 30), (200, 150, 8)])
def test_frechet_distance_of_few_samples_equals_the_singular_value_form(rng, num_a, num_b, dim):
    # tr (A B)^(1/2) is the sum of singular values of X_a X_b^T / sqrt((N - 1)(M - 1)) for centred
    # X: exact also where the covariances are singular.
    a, b = rng.standard_normal((num_a, dim)) * 3 + 1, rng.standard_normal((num_b, dim))
    xa, xb = a - a.mean(0), b - b.mean(0)
    root = np.linalg.svd(xa @ xb.T, compute_uv=False).sum() / np.sqrt((num_a - 1) * (num_b - 1))
    expected = (
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + (xa**2).sum() / (num_a - 1)
        + (xb**2).sum() / (num_b - 1)
        - 2 * root
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(a, a) < 1e-6 * np.trace(np.cov(a.T))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-7)


def test_kernel_distance_of_subsets_matches_a_plain_loop(rng):
    a, b = rng.standard_normal((30, 6)), rng.standard_normal((25, 6)) + 0.5
    draws = np.random.default_rng(3)
    total = 0.0
    for _ in range(7):
        x = a[draws.choice(30, 10, replace=False)]
        y = b[draws.choice(25, 10, replace=False)]
        k = lambda p, q: (sum(u * v for u, v in zip(p, q, strict=True)) / 6 + 1) ** 3  # noqa: E731
        pairs = itertools.permutations(range(10), 2)
        within = sum(k(s[i], s[j]) for i, j in pairs for s in (x, y)) / (10 * 9)
        total += within - 2 * sum(k(p, q) for p in x for q in y) / 100
    value = kernel_distance_of_subsets(a, b, num_subsets=7, subset_size=10, seed=3)
    assert value == pytest.approx(total / 7, rel=1e-10)
    # Where a subset is the whole set, all subsets are equal.
    assert kernel_distance_of_subsets(a[:20], b[:20]) == kernel_distance(a[:20], b[:20])


def test_precision_and_recall_match_the_definition(rng, monkeypatch):
    monkeypatch.setattr("nfs.perceptual.neighbours._BLOCK_ROWS", 7)  # several blocks
    real, fake = rng.standard_normal((40, 3)) + 50, 1.5 * rng.standard_normal((30, 3)) + 50.5
    distance = lambda p, q: np.linalg.norm(p[:, None] - q[None], axis=2)  # noqa: E731 - a formula
    inside = lambda probes, centres: float(  # noqa: E731 - a formula
        (distance(probes, centres) <= np.sort(distance(centres, centres), axis=1)[:, 3])
        .any(1)
        .mean()
    )
    assert precision_recall(real, fake) == (inside(fake, real), inside(real, fake))
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 100) == (0.0, 0.0)
    collapsed = np.repeat(real[:1], 10, axis=0) + 1e-6 * rng.standard_normal((10, 3))
    precision, recall = precision_recall(real, collapsed)
    assert precision == 1.0
    assert recall < 0.1
    with pytest.raises(ValueError, match="N, M > 3"):
        precision_recall(real, fake[:3])


def test_names_of_metrics_carry_the_network(rng):
    a, b = rng.standard_normal((2, 6, 4))
    assert compare_sets(a, b, MetricNames.of("face")).keys() == {
        "frechet_face",
        "kernel_face",
        "precision_face",
        "recall_face",
    }
    assert compare_sets(a[:3], b, MetricNames.of("face")).keys() == {"frechet_face", "kernel_face"}


def test_face_features_are_pooled_activations_and_independent_of_the_batch(rng):
    extractor = build_extractor(FaceFeatures())
    images = torch.from_numpy(rng.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8))
    together = extractor.extract(images)
    assert together.shape == (3, 256)
    assert (together >= 0).all()
    assert torch.allclose(extractor.extract(images[1:2]), together[1:2], atol=1e-5)
    embedding = extractor.net.embed(images.float() / 127.5 - 1)
    assert torch.allclose(extractor.net.net.fc(together), embedding, atol=1e-5)
    assert extractor.names.frechet == "frechet_face"
    with pytest.raises(ConfigError, match="arcface is not available"):
        build_extractor(ArcfaceFeatures(checkpoint="x"))


class Detector(nn.Module):
    """Stands for the TorchScript detector: colour means, spread over 2048 numbers."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        features = images.float().mean(dim=(2, 3)).repeat(1, 700)[:, :2048]
        return features if return_features else features[:, :10]


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_torchscript_runs_only_with_the_configured_checksum(tmp_path, monkeypatch):
    path = tmp_path / "inception.pt"
    torch.jit.script(Detector()).save(str(path))
    extractor = build_extractor(InceptionFile(path=str(path), sha256=_sha256(path)))
    assert (extractor.names.frechet, extractor.names.kernel) == ("fid", "kid")
    images = torch.full((2, 3, 5, 5), 7, dtype=torch.uint8)
    assert torch.equal(extractor.extract(images), torch.full((2, 2048), 7.0))

    def never(*_args, **_options):
        raise AssertionError("loaded")

    monkeypatch.setattr("torch.jit.load", never)
    monkeypatch.setattr("torch.load", never)
    with pytest.raises(InputError, match="not loaded, because a TorchScript file is a program"):
        build_extractor(InceptionFile(path=str(path), sha256="0" * 64))
    with pytest.raises(InputError, match="no such file"):
        build_extractor(InceptionFile(path=str(tmp_path / "none.pt"), sha256="0" * 64))


class Small(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def test_a_network_of_another_shape_is_not_called_inception(tmp_path):
    path = tmp_path / "small.pt"
    torch.jit.script(Small()).save(str(path))
    with pytest.raises(InputError, match=r"returns \[1, 3\].*features.kind=face"):
        build_extractor(InceptionFile(path=str(path), sha256=_sha256(path)))


def test_inception_weights_load_from_a_state_dict(tmp_path):
    torch.manual_seed(0)
    net = InceptionNet().eval()
    state = {k: v for k, v in net.layers.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    extractor = build_extractor(InceptionFile(path=str(path), sha256=_sha256(path)))
    images = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(extractor.extract(images), net(images))
    torch.save({"other.weight": torch.zeros(3)}, path)
    with pytest.raises(
        InputError, match=r"not the Inception weights .* unknown \['other.weight'\]"
    ):
        build_extractor(InceptionFile(path=str(path), sha256=_sha256(path)))


def test_inception_differs_from_torchvision_only_in_its_pools():
    torch.manual_seed(0)
    net = InceptionNet().eval()
    images = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    seen = {}
    layers = net.layers
    layers.Mixed_7a.register_forward_hook(lambda _m, i, o: seen.update(out=o, x=i[0]))
    with torch.no_grad():
        features = net(images)
        ours = seen["x"]
        # Inside the border an average that does not count padding equals one that does.
        stem = layers.Conv2d_2b_3x3(
            layers.Conv2d_2a_3x3(layers.Conv2d_1a_3x3(images.float() / 127.5 - 1))
        )
        stem = layers.maxpool1(stem)
        stem = layers.maxpool2(layers.Conv2d_4a_3x3(layers.Conv2d_3b_1x1(stem)))
        block = layers.Mixed_5b(stem)
        from nfs.perceptual.inception import _block_a, _block_c, _block_e

        assert torch.allclose(
            _block_a(layers.Mixed_5b, stem)[..., 1:-1, 1:-1], block[..., 1:-1, 1:-1]
        )
        six = layers.Mixed_6b(ours)
        assert torch.allclose(
            _block_c(layers.Mixed_6b, ours)[..., 1:-1, 1:-1], six[..., 1:-1, 1:-1]
        )
        pooled = nn.functional.avg_pool2d(seen["out"], 3, 1, 1)
        assert torch.allclose(
            _block_e(layers.Mixed_7b, seen["out"], pooled), layers.Mixed_7b(seen["out"])
        )
    assert features.shape == (1, 2048)
