"""Generator and discriminator on tiny sizes: gradients, determinism, hooks, plain twins."""

import math

import pytest
import torch
from torch.nn import functional as F

from nfs.geometry.cameras import orbit_cameras
from nfs.stylenerf import (
    Discriminator,
    DiscriminatorSpec,
    Generator,
    GeneratorSpec,
    RenderDraws,
    RenderOptions,
)
from nfs.stylenerf import layers as L
from nfs.stylenerf import resampling as R
from nfs.stylenerf.field import RadianceField
from nfs.stylenerf.field_options import EllipsoidPrior, FieldOptions
from nfs.stylenerf.schedule import stage
from nfs.stylenerf.upsampling import NearestCatUpsample

TINY = GeneratorSpec(
    z_dim=8,
    w_dim=12,
    img_resolution=16,
    mapping_num_layers=2,
    field_hidden_dim=16,
    field_num_layers=3,
    background_dim=4,
    background_hidden_dim=8,
    background_num_layers=2,
    feature_dim=8,
    num_frequencies=3,
    resolution_vol=4,
    resolution_start=4,
    num_samples=4,
    num_background_samples=2,
    channel_base=0.01,
    channel_max=16,
)
TINY_D = DiscriminatorSpec(
    img_resolution=16, channel_base=0.004, channel_max=16, mbstd_group_size=2, lowres_head=8
)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return Generator(TINY).eval()


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return Discriminator(TINY_D)


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    z = torch.randn(batch, TINY.z_dim, generator=random)
    code = torch.randn(batch, TINY.background_dim, generator=random)
    yaw = torch.linspace(-0.2, 0.2, batch)
    return z, orbit_cameras(yaw, torch.full((batch,), 1.5)), code


def render(generator, *, batch: int = 2, options=None, draws=None):
    z, cameras, code = inputs(batch)
    ws = generator.mapping(z)
    return generator.synthesis(ws, cameras, background_code=code, options=options, draws=draws)


def test_shapes(generator):
    out = render(generator)
    assert out.image.shape == (2, 3, 16, 16)
    assert out.features.shape == (2, 8, 4, 4)
    assert out.depth.shape == out.opacity.shape == (2, 1, 4, 4)
    assert out.weights.shape == out.depths.shape == (2, 16, 8)
    assert generator.num_ws == 5 + 5
    assert generator.num_field_ws == 5


def test_every_parameter_learns(generator, discriminator):
    z, cameras, code = inputs(4)
    generator.train()
    image = generator(z, cameras, background_code=code, mixing=(z.flip(0), 4)).image
    F.softplus(-discriminator(image)).mean().backward()
    for module in (generator, discriminator):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_state_dict_round_trip(generator):
    other = Generator(TINY).eval()
    other.load_state_dict(generator.state_dict())
    with torch.no_grad():
        assert torch.equal(render(other).image, render(generator).image)


def test_evaluation_is_deterministic_and_follows_the_grad_mode(generator):
    with torch.no_grad():
        first, second = render(generator), render(generator)
    assert torch.equal(first.image, second.image)
    assert not first.image.requires_grad
    z, cameras, code = inputs()
    ws = generator.mapping(z).detach().requires_grad_(True)
    generator.synthesis(ws, cameras, background_code=code).image.sum().backward()
    assert (ws.grad.abs().sum(dim=(0, 2)) > 0).all()


def test_an_image_does_not_depend_on_its_batch(generator):
    z, cameras, code = inputs(3)
    with torch.no_grad():
        together = generator(z, cameras, background_code=code).image
        alone = generator(z[1:2], cameras[1:2], background_code=code[1:2]).image
    assert torch.allclose(together[1:2], alone, atol=2e-4)


def test_training_moves_averages_and_draws_random_numbers(generator):
    generator.train()
    z, cameras, code = inputs()
    torch.manual_seed(5)
    first = generator(z, cameras, background_code=code).image
    assert generator.w_avg.abs().max() > 0
    assert float(generator.upsampler.blocks["8"].conv0.magnitude) != 1.0
    second = generator(z, cameras, background_code=code).image
    assert not torch.equal(first, second)


def test_injected_draws_fix_a_training_image(generator):
    generator.train()
    coarse, background = torch.rand(2, 16, 4), torch.rand(2, 16, 2)
    draws = RenderDraws(coarse, coarse * 0.1, coarse, coarse * 0.1, background, background * 0.1)
    low = [render(generator, draws=draws).image_low for _ in range(2)]
    assert torch.equal(low[0], low[1])


def test_truncation(generator):
    z = inputs()[0]
    generator.mapping_network.w_avg.normal_()
    full = generator.mapping(z)
    none = generator.mapping(z, truncation_psi=0.0)
    assert torch.allclose(none, generator.w_avg.expand_as(none))
    cut = generator.mapping(z, truncation_psi=0.5, truncation_cutoff=3)
    assert torch.equal(cut[:, 3:], full[:, 3:])
    assert torch.allclose(cut[:, :3], (full[:, :3] + none[:, :3]) / 2)


def test_injected_depths_and_identity_hooks_reproduce_the_image(generator):
    with torch.no_grad():
        plain = render(generator)
        options = RenderOptions(
            depths=(plain.depths_coarse, plain.depths_fine),
            point_warp=lambda points, cam2world: points,
            edit_features=lambda features, low: (features, low),
        )
        assert torch.equal(render(generator, options=options).image, plain.image)


def test_point_warp_sees_both_passes_and_the_cameras(generator):
    seen = []

    def warp(points, cam2world):
        seen.append((points.shape, cam2world.shape))
        return points + 0.05

    with torch.no_grad():
        moved = render(generator, options=RenderOptions(point_warp=warp))
        assert not torch.equal(moved.image, render(generator).image)
    assert seen == [((2, 16, 4, 3), (2, 4, 4))] * 2


def test_edited_features_are_what_the_blocks_see(generator):
    def edit(features, low):
        return features * 0, low + 1

    with torch.no_grad():
        edited = render(generator, options=RenderOptions(edit_features=edit))
        plain = render(generator)
    assert torch.equal(edited.features, torch.zeros_like(plain.features))
    assert torch.equal(edited.image_low, plain.image_low + 1)


def test_frozen_background_ignores_the_camera(generator):
    still = RenderOptions(background_cam2world=generator.frozen_background_camera(2))
    z, cameras, code = inputs()
    with torch.no_grad():
        ws = generator.mapping(z[:1]).expand(2, -1, -1)
        code = code[:1].expand(2, -1)
        fixed = generator.synthesis(ws, cameras, background_code=code, options=still)
        free = generator.synthesis(ws, cameras, background_code=code)
    assert torch.equal(fixed.background_weights[0], fixed.background_weights[1])
    assert not torch.equal(free.background_weights[0], free.background_weights[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ws": torch.zeros(2, 3, 12)}, r"ws must be \[2, 10, 12\], got \[2, 3, 12\]"),
        ({"cam2world": torch.eye(4)[None]}, r"cam2world must be \[2, 4, 4\]"),
        ({"background_code": torch.zeros(2, 5)}, r"background_code must be \[2, 4\]"),
    ],
)
def test_wrong_shapes_are_named(generator, change, message):
    _, cameras, code = inputs()
    good = {"ws": torch.zeros(2, 10, 12), "cam2world": cameras, "background_code": code}
    with pytest.raises(ValueError, match=message):
        generator.synthesis(**(good | change))


def test_other_mistakes_are_named(generator, discriminator):
    with pytest.raises(ValueError, match=r"z must be \[B, 8\]"):
        generator.mapping(torch.zeros(2, 9))
    with pytest.raises(ValueError, match="coarse depths must be"):
        render(generator, options=RenderOptions(depths=(torch.zeros(2, 9, 4),) * 2))
    with pytest.raises(ValueError, match="point_warp returned"):
        render(generator, options=RenderOptions(point_warp=lambda points, _: points[:, :1]))
    with pytest.raises(ValueError, match="alpha must be"):
        render(generator, options=RenderOptions(alpha=1.5))
    with pytest.raises(ValueError, match=r"image must be \[B, 3, R, R\]"):
        discriminator(torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match="smaller than the first active block"):
        discriminator(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="mbstd_group_size"):
        discriminator(torch.zeros(3, 3, 16, 16))


@pytest.mark.parametrize(
    ("alpha", "field", "image", "fade"),
    [(-1, 4, 16, None), (0, 4, 4, None), (0.25, 4, 8, 0.5), (0.75, 4, 16, 0.5), (1, 4, 16, None)],
)
def test_growth_stages(generator, alpha, field, image, fade):
    found = generator.stage(alpha)
    assert (found.field_resolution, found.image_resolution, found.fade) == (field, image, fade)
    with torch.no_grad():
        out = render(generator, options=RenderOptions(alpha=alpha))
    assert out.image.shape[-1] == image


def test_growth_of_the_field_itself():
    sizes = {"resolution_start": 8, "resolution_vol": 32, "img_resolution": 64}
    assert stage(0.0, **sizes).field_resolution == 8
    assert stage(0.5, **sizes).field_resolution == 32
    assert stage(0.5, progressive=False, **sizes).image_resolution == 64


def test_fade_is_continuous(generator):
    with torch.no_grad():
        late = render(generator, options=RenderOptions(alpha=1 - 1e-6)).image
        full = render(generator, options=RenderOptions(alpha=1.0)).image
    assert torch.allclose(late, full, atol=1e-4)


def test_discriminator_starts_at_the_active_resolution(discriminator):
    torch.manual_seed(1)
    with torch.no_grad():
        assert discriminator(torch.randn(4, 3, 16, 16)).shape == (4, 1)
        image = torch.randn(4, 3, 16, 16)
        small = F.interpolate(image, size=(8, 8), mode="bilinear", align_corners=False)
        ours = discriminator(image, alpha=0.0)
        assert torch.equal(discriminator(small, alpha=0.0), ours)
        # The first active block sees its colours twice (Q16).
        block = discriminator.blocks["8"]
        x, low = block(block.from_rgb(small), small)
        assert torch.equal(discriminator.epilogue(x, low), ours)


def test_prior_makes_an_opaque_head():
    spec = GeneratorSpec(**(vars(TINY) | {"density_prior": EllipsoidPrior((0.08,) * 3, 500.0)}))
    torch.manual_seed(0)
    with torch.no_grad():
        out = render(Generator(spec).eval())
    assert out.opacity[:, :, 1:3, 1:3].min() > 0.9
    assert out.opacity[:, :, 0, 0].max() < 0.5


@pytest.mark.parametrize(
    "spec", [TINY, TINY_D, GeneratorSpec(density_prior=EllipsoidPrior((1.0, 2.0, 3.0), 4.0))]
)
def test_spec_survives_json(spec):
    import json

    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_heads_after_compositing_equal_heads_per_sample():
    torch.manual_seed(0)
    field = RadianceField(
        12, hidden_dim=10, num_layers=2, feature_dim=5, w_dim=6, options=FieldOptions()
    )
    for parameter in field.parameters():
        parameter.data.normal_()
    ws, encoded = torch.randn(2, field.num_ws, 6), torch.rand(2, 12, 12)
    weights = torch.rand(2, 3, 4)
    hidden, _ = field.hidden_and_sigma(encoded, ws)
    per_sample = field.features(hidden, ws).reshape(2, 3, 4, -1)
    expected = (weights[..., None] * per_sample).sum(dim=2)
    mean = (weights[..., None] * hidden.reshape(2, 3, 4, -1)).sum(dim=2)
    assert torch.allclose(field.features(mean, ws, weights.sum(dim=-1)), expected, atol=1e-4)


def test_modulated_layer_equals_the_definition():
    torch.manual_seed(0)
    weight, styles, x = torch.randn(5, 4), torch.randn(2, 4), torch.randn(2, 7, 4)
    for b in range(2):
        scaled = weight * styles[b]
        rows = scaled / (scaled.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
        ours = x[b] @ L.demodulated(weight, styles)[b].T
        assert torch.allclose(ours, x[b] @ rows.T, atol=1e-5)


def zero_insertion(x, *, up=1, down=1, pad, gain=1.0):
    """Plain FIR resampling: zeros between pixels, padding, filter, every `down`-th pixel."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps) / 64 * gain
    y = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
    y[:, :, ::up, ::up] = x
    y = F.pad(y, (pad[0], pad[1], pad[0], pad[1]))
    y = F.conv2d(y.flatten(0, 1)[:, None], kernel[None, None]).unflatten(0, x.shape[:2])[:, :, 0]
    return y[:, :, ::down, ::down]


def test_fir_resampling_equals_zero_insertion():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    cases = [
        (R.fir_filter(x), {"pad": (2, 1)}),
        (R.fir_upsample(x), {"pad": (2, 1), "up": 2, "gain": 4.0}),
        (R.fir_downsample(x), {"pad": (1, 1), "down": 2}),
    ]
    for ours, how in cases:
        assert torch.allclose(ours, zero_insertion(x, **how), atol=1e-5)


def test_nearest_cat_equals_the_network_on_the_large_map():
    torch.manual_seed(0)
    layer, x = NearestCatUpsample(8), torch.randn(2, 8, 3, 3)
    layer.squeeze.bias.data.normal_()
    padded = F.pad(x, (1, 1, 1, 1))
    left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    up, down = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
    large = F.interpolate(x, scale_factor=2.0, mode="nearest")
    neighbours = torch.zeros_like(large)
    neighbours[..., 0::2, 0::2] = (left + up) / 2
    neighbours[..., 0::2, 1::2] = (up + right) / 2
    neighbours[..., 1::2, 0::2] = (left + down) / 2
    neighbours[..., 1::2, 1::2] = (down + right) / 2
    expected = large + layer.expand(layer.squeeze(torch.cat([large, neighbours], dim=1)))
    assert torch.allclose(layer(x), zero_insertion(expected, pad=(2, 1)), atol=1e-5)


def test_double_backward_in_float64(discriminator):
    torch.manual_seed(0)
    generator = Generator(TINY).double().eval()
    z, cameras, code = (value.double() for value in inputs(1))
    ws = generator.mapping(z).detach().requires_grad_(True)
    coarse = torch.linspace(0, 1, 4, dtype=torch.float64).expand(1, 16, 4)
    options = RenderOptions(depths=(coarse, coarse * 0.9 + 0.05))
    image = generator.synthesis(ws, cameras, background_code=code, options=options).image
    (gradient,) = torch.autograd.grad((image * image).sum(), ws, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), ws)
    assert torch.isfinite(second).all()
    assert second.abs().max() > 0
    assert math.isfinite(float(gradient.detach().norm()))
