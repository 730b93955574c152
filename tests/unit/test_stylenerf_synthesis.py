"""Synthesis layers, blocks and stacks: definitions, noise, architectures, derivatives, errors."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from nfs.stylenerf.input_stack import InputStack
from nfs.stylenerf.layers import EqualConv2d, modulated_conv
from nfs.stylenerf.synthesis import LayerOptions, SynthesisBlock, SynthesisLayer, ToRgb
from nfs.stylenerf.upsampler import Upsampler
from nfs.stylenerf.upsampling import UPSAMPLE_MODES, build_upsampling

OPTIONS = LayerOptions(w_dim=5, kernel_size=3, upsample_mode="nn_cat", use_noise=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def spread(module):
    """Give biases, noise strengths and zero-initialised weights something to do."""
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("dims", [2, 3])
def test_shared_kernel_equals_a_kernel_per_sample(dims):
    x, styles = torch.randn(2, 3, *(4,) * dims), torch.randn(2, 3)
    weight = torch.randn(5, 3, *(3,) * dims)
    scaled = weight[None] * styles.reshape(2, 1, 3, *(1,) * dims)
    norm = scaled.flatten(2).square().sum(dim=2).add(1e-8).sqrt()
    scaled = scaled / norm.reshape(2, 5, 1, *(1,) * dims)
    convolve = F.conv2d if dims == 2 else F.conv3d
    expected = torch.cat([convolve(x[b : b + 1], scaled[b], padding=1) for b in range(2)])
    ours = modulated_conv(x, weight, styles, scale=torch.tensor(0.5))
    torch.testing.assert_close(ours, expected * 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_styles_survive_reduced_precision(dtype):
    x, styles = torch.randn(1, 64, 4, 4), torch.full((1, 64), 3e3)
    weight = torch.randn(8, 64, 3, 3) * 50
    exact = modulated_conv(x, weight, styles)
    with torch.autocast("cpu", dtype):
        reduced = modulated_conv(x.to(dtype), weight, styles.to(dtype))
    assert reduced.dtype == dtype
    assert (reduced.float() - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("mode", ["default", "nn_cat", "liif"])
def test_features_are_reduced_and_images_are_not_under_autocast(mode):
    stack = spread(
        Upsampler(8, replace(OPTIONS, upsample_mode=mode), resolutions=[8, 16], channels=[8, 8])
    ).eval()
    x, image, ws = torch.randn(2, 8, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(2, 5, 5)
    exact = stack(x, image, ws, limit=16)[-1]
    with torch.autocast("cpu", torch.bfloat16):
        features = stack.blocks["8"].conv0(x, ws[:, 0])
        reduced = stack(x, image, ws, limit=16)[-1]
    assert features.dtype == torch.bfloat16
    assert reduced.dtype == torch.float32
    assert 1e-5 < (reduced - exact).abs().max() / exact.abs().max() < 0.03


@pytest.mark.parametrize("mode", UPSAMPLE_MODES)
def test_every_mode_doubles_and_has_second_derivatives(mode):
    options = replace(OPTIONS, kernel_size=1, upsample_mode=mode, magnitude_beta=None)
    layer = spread(SynthesisLayer(2, 4, 4, options, up=True)).double()
    x = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    assert layer(x, w).shape == (1, 4, 4, 4)
    assert torch.autograd.gradcheck(lambda x, w: layer(x, w, noise="const"), (x, w))
    (gradient,) = torch.autograd.grad(
        layer(x, w, noise="const").square().sum(), x, create_graph=True
    )
    gradient.square().sum().backward()
    for name, parameter in layer.named_parameters():
        if name != "noise_strength" and "bias" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_learned_networks_equal_the_order_of_the_definition():
    """Their first layer runs at the low resolution; the definition runs it at the high one."""
    x = torch.randn(2, 8, 3, 3)
    shuffle = spread(build_upsampling("pixelshuffle_noblur", 8, 6))
    expected = F.interpolate(x, scale_factor=2.0) + F.pixel_shuffle(
        shuffle.expand(shuffle.squeeze(x)), 2
    )
    torch.testing.assert_close(shuffle(x), expected)
    liif = spread(build_upsampling("liif", 8, 6))
    total = torch.zeros(2, 8, 6, 6)
    for j in range(4):
        corner = x.flatten(2)[:, :, liif.corners.reshape(4, 36)[j]].reshape(2, 8, 6, 6)
        way = liif.differences[j].permute(2, 0, 1).expand(2, -1, -1, -1)
        seen = torch.cat([corner, way], dim=1)
        total += liif.coefficients[j] * liif.expand(liif.squeeze(seen))
    torch.testing.assert_close(liif(x), total)


def test_noise_is_random_in_training_and_constant_in_evaluation():
    layer = spread(SynthesisLayer(3, 4, 8, OPTIONS, up=True))
    x, w = torch.randn(2, 3, 4, 4), torch.randn(2, 5)
    layer.eval()
    assert torch.equal(layer(x, w), layer(x, w, noise="const"))
    assert not torch.equal(layer(x, w), layer(x, w, noise="none"))
    layer.train()
    assert not torch.equal(layer(x, w), layer(x, w))
    stored = iter([layer.noise_const[None, None]])
    layer.eval()
    assert torch.equal(layer(x, w, noise=stored), layer(x, w, noise="const"))
    # The path that keeps the size has no noise.
    assert torch.equal(layer(x, w, noise="random", double=False), layer(x, w, double=False))


def test_recorded_noise_is_used_in_the_order_of_the_blocks():
    stack = spread(
        Upsampler(3, OPTIONS, resolutions=[8, 16], channels=[4, 4], architecture="skip")
    ).eval()
    layers = [getattr(stack.blocks[r], name) for r in ("8", "16") for name in ("conv0", "conv1")]
    maps = [layer.noise_const[None, None].clone() for layer in layers]
    x, image, ws = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), torch.randn(1, 5, 5)
    constant = stack(x, image, ws, limit=16)
    noise = iter(maps)
    assert torch.equal(stack(x, image, ws, limit=16, noise=noise)[-1], constant[-1])
    assert next(noise, None) is None


def test_kernel_is_mirrored_only_where_a_layer_doubles():
    plain = SynthesisLayer(3, 4, 8, OPTIONS, up=True).eval()
    mirrored = SynthesisLayer(3, 4, 8, replace(OPTIONS, flip_up_kernel=True), up=True).eval()
    mirrored.load_state_dict(plain.state_dict())
    x, w = torch.randn(1, 3, 4, 4), torch.randn(1, 5)
    assert not torch.allclose(plain(x, w), mirrored(x, w))
    assert torch.equal(plain(x, w, double=False), mirrored(x, w, double=False))
    plain.weight.data = plain.weight.data.flip((2, 3))
    torch.testing.assert_close(plain(x, w), mirrored(x, w))


def test_styles_serve_consecutive_rows():
    layer = spread(SynthesisLayer(3, 4, 8, OPTIONS, up=True)).eval()
    colour = spread(ToRgb(3, 2, 5, clamp=None))
    x, w = torch.randn(6, 3, 4, 4), torch.randn(2, 5)
    for module in (layer, colour):
        single = torch.cat([module(x[b : b + 1], w[b // 3 : b // 3 + 1]) for b in range(6)])
        torch.testing.assert_close(module(x, w), single)
    with pytest.raises(ValueError, match="5 inputs are not a multiple of 2 styles"):
        layer(x[:5], w)


def test_architectures():
    kwargs = {"resolutions": [8, 16], "channels": [4, 6]}
    skip = Upsampler(3, OPTIONS, **kwargs)
    orig = Upsampler(3, OPTIONS, architecture="orig", **kwargs)
    resnet = Upsampler(3, OPTIONS, architecture="resnet", **kwargs)
    single = Upsampler(3, OPTIONS, single_layer=True, **kwargs)
    assert [stack.num_ws for stack in (skip, orig, resnet, single)] == [5, 5, 5, 3]
    assert [orig.blocks[r].to_rgb is None for r in ("8", "16")] == [True, False]
    assert resnet.blocks["8"].skip is not None
    x, image = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    for stack in (skip, orig, resnet, single):
        ws = torch.randn(1, stack.num_ws, 5)
        assert [i.shape[-1] for i in stack(x, image, ws, limit=16)] == [8, 16]
        assert [i.shape[-1] for i in stack(x, image, ws, limit=16, double=False)] == [4, 4]
        assert [i.shape[-1] for i in stack(x, image, ws, limit=8)] == [8]


def test_residual_block_is_the_sum_of_both_paths():
    options = replace(OPTIONS, clamp=None, use_noise=False)
    block = SynthesisBlock(3, 4, 8, options, architecture="resnet", is_last=True).eval()
    x, ws = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 5)
    through = block.conv1(block.conv0(x, ws[:, 0]), ws[:, 1])
    found, image = block(x, None, ws)
    torch.testing.assert_close(found, block.skip(x) + through)
    torch.testing.assert_close(image, block.to_rgb(found, ws[:, 2]))


def test_colours_may_share_the_last_style_and_replace_the_image():
    kwargs = {"resolutions": [8, 16], "channels": [4, 4]}
    shared = spread(Upsampler(3, OPTIONS, shared_rgb_style=True, **kwargs)).eval()
    x, image, ws = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), torch.randn(1, 5, 5)
    other = ws.clone()
    other[:, -1] += 1
    before, after = shared(x, image, ws, limit=16), shared(x, image, other, limit=16)
    assert not torch.allclose(before[0], after[0])
    alone = spread(Upsampler(3, OPTIONS, residual_image=False, **kwargs)).eval()
    assert torch.equal(alone(x, image, ws, limit=8)[0], alone(x, image + 1, ws, limit=8)[0])


def test_running_magnitude_is_optional():
    layer = SynthesisLayer(3, 4, 8, replace(OPTIONS, magnitude_beta=None), up=True)
    assert "magnitude" not in layer.state_dict()
    x, w = torch.randn(1, 3, 4, 4), torch.randn(1, 5)
    torch.testing.assert_close(layer(2 * x, w, noise="none"), layer(2 * x, w, noise="none"))
    normalised = SynthesisLayer(3, 4, 8, OPTIONS, up=True)
    normalised(10 * x, w)
    assert float(normalised.magnitude) > 1


def test_plane_stacks():
    options = replace(OPTIONS, upsample_mode="default")
    kwargs = {"in_resolution": 4, "out_resolution": 16, "channels": lambda r: 64 // r}
    planes = InputStack(6, options, **kwargs)
    assert list(planes.blocks) == ["8", "16"]
    assert planes.num_ws == 4
    assert planes(torch.randn(2, 4, 5)).shape == (2, 6, 16, 16)
    volume = InputStack(6, options, dims=3, **kwargs)
    assert volume(torch.randn(2, 4, 5)).shape == (2, 6, 16, 16, 16)
    several = spread(InputStack(6, options, const_planes=3, **kwargs)).eval()
    ws = torch.randn(2, several.num_ws, 5)
    together = several(ws)
    assert together.shape == (6, 6, 16, 16)
    const = several.const.data.clone()
    several.const.data = const[1:2]
    torch.testing.assert_close(several(ws), together[1::3])


def test_every_parameter_of_a_volume_stack_is_trained():
    options = replace(OPTIONS, upsample_mode="default")
    stack = spread(
        InputStack(2, options, in_resolution=2, out_resolution=8, channels=lambda r: 3, dims=3)
    )
    stack(torch.randn(2, stack.num_ws, 5)).square().sum().backward()
    assert [n for n, p in stack.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="upsample_mode='cubic' is unknown"):
        build_upsampling("cubic", 4, 8)
    with pytest.raises(ValueError, match="kernel_size must be 1 or 3, got 5"):
        SynthesisLayer(3, 4, 8, replace(OPTIONS, kernel_size=5), up=True)
    with pytest.raises(ValueError, match="architecture must be skip, orig or resnet"):
        SynthesisBlock(3, 4, 8, OPTIONS, architecture="dense")
    with pytest.raises(ValueError, match="is for images, not for volumes"):
        SynthesisBlock(3, 4, 8, OPTIONS, architecture="resnet", dims=3)
    layer = SynthesisLayer(3, 4, 8, OPTIONS, up=True)
    x, w = torch.randn(1, 3, 2, 2), torch.randn(1, 5)
    with pytest.raises(ValueError, match="noise must be"):
        layer(x, w, noise="pink")
    with pytest.raises(ValueError, match="use noise='random'"):
        layer(x, w, noise="const")
    with pytest.raises(ValueError, match="liif upsampling to 8 px got a map of 3x3"):
        build_upsampling("liif", 4, 8)(torch.zeros(1, 4, 3, 3))
    with pytest.raises(ValueError, match="out_resolution=20 is not in_resolution=4 doubled"):
        InputStack(3, OPTIONS, in_resolution=4, out_resolution=20, channels=lambda r: 4)
    with pytest.raises(ValueError, match="cannot double and halve"):
        EqualConv2d(3, 3, 1, up=True, down=True)
