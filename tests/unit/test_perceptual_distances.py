import numpy as np
import pytest
import torch

from nfs.errors import ConfigError
from nfs.perceptual import CombinedDistance, PixelDistance, build_distance, find_identity
from nfs.perceptual.frechet import frechet_distance, kernel_distance
from nfs.perceptual.pixel import peak_signal_to_noise_db


def images(count=2, size_px=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size_px, size_px, generator=generator) * 2 - 1


@pytest.mark.parametrize("size_px", [16, 32, 50])
def test_pixel_distance_is_zero_only_for_equal_images(size_px):
    backend = PixelDistance()
    first, second = (
        backend.features(images(size_px=size_px)),
        backend.features(images(size_px=size_px, seed=1)),
    )
    assert len(first) == backend.num_features
    assert backend.distance(first, first).abs().max() < 1e-6
    assert backend.distance(first, second).min() > 0.1


def test_pixel_distance_broadcasts_one_target_over_a_batch():
    backend = PixelDistance()
    batch = backend.features(images(3))
    one = backend.features(images(1, seed=5))
    together = backend.distance(batch, one)
    alone = [backend.distance(backend.features(images(3)[i : i + 1]), one) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_pixel_distance_sees_blur_that_l1_hardly_sees():
    backend = PixelDistance()
    image = images(1)
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    shifted = image + (image - blurred).abs().mean()
    features = backend.features(image)
    blur, brightness = (backend.distance(features, backend.features(x)) for x in (blurred, shifted))
    assert blur > 2 * brightness


def test_ssim_matches_a_direct_computation():
    backend = PixelDistance(num_levels=1, l1_weight=0, gradient_weight=0, ssim_weight=1)
    a, b = images(1, 11).double(), images(1, 11, seed=3).double()
    backend = backend.double()
    grid = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    x, y = (a[0] + 1) / 2, (b[0] + 1) / 2
    mean = lambda v: (v * window).sum((1, 2))  # noqa: E731 - a formula
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    ssim = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    value = backend.distance(backend.features(a), backend.features(b))
    assert abs(value.item() - (1 - ssim.mean().item())) < 1e-7


def test_combined_distance_is_the_weighted_sum_with_the_names():
    parts = [PixelDistance(num_levels=1), PixelDistance(num_levels=2)]
    parts[1].name = "fine"
    combined = CombinedDistance(parts, [2.0, 0.5])
    first, second = images(), images(seed=1)
    value = combined.distance(combined.features(first), combined.features(second))
    expected = 2 * parts[0].distance(parts[0].features(first), parts[0].features(second))
    expected = expected + 0.5 * parts[1].distance(
        parts[1].features(first), parts[1].features(second)
    )
    assert torch.allclose(value, expected)
    assert combined.name == "pixel_fine"


def test_build_distance_reads_sums_and_names_mistakes():
    combined = build_distance("dlib+0.5*pixel")
    assert combined.name == "dlib_pixel"
    assert combined.weights == (1.0, 0.5)
    assert find_identity(combined).name == "dlib"
    assert find_identity(build_distance("pixel")) is None
    with pytest.raises(ConfigError, match="unknown backend 'lpips'"):
        build_distance("lpips")
    with pytest.raises(ConfigError, match="twice"):
        build_distance("pixel+pixel")
    with pytest.raises(ConfigError, match="positive"):
        build_distance("0*pixel")


def test_psnr_of_a_known_error():
    image = torch.zeros(1, 3, 4, 4)
    assert abs(peak_signal_to_noise_db(image, image + 0.2).item() - 20) < 1e-4


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((4000, 3))
    white = (sample - sample.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(sample.T))).T
    assert frechet_distance(white, white) < 1e-9
    assert abs(frechet_distance(white, white + np.array([1, 2, 0])) - 5) < 1e-6
    # covariances I and 4 I: tr(I + 4 I - 2 * 2 I) = 3
    assert abs(frechet_distance(white, 2 * white) - 3) < 1e-6


def test_frechet_distance_of_correlated_sets_matches_the_matrix_square_root():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 4)), rng.standard_normal((60, 4))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert abs(frechet_distance(a, b) - expected) < 1e-8


def test_kernel_distance_is_unbiased_and_separates():
    rng = np.random.default_rng(2)
    equal = [kernel_distance(*rng.standard_normal((2, 40, 5))) for _ in range(200)]
    assert abs(np.mean(equal)) < 3 * np.std(equal) / np.sqrt(len(equal))
    assert kernel_distance(rng.standard_normal((40, 5)), rng.standard_normal((40, 5)) + 1) > 1
    with pytest.raises(ValueError, match="N, M >= 2"):
        kernel_distance(np.zeros((1, 3)), np.zeros((5, 3)))
