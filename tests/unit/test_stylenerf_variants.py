"""Kinds of generators: gradients, files, styles, growth, options of the rendering."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

from nfs.geometry.cameras import orbit_cameras
from nfs.stylenerf import Generator, GeneratorSpec, RenderDraws, RenderOptions
from nfs.stylenerf.field_options import FieldOptions, InputSpec
from nfs.stylenerf.schedule import stage
from nfs.stylenerf.spec import CameraPrior
from tests.stylenerf_tiny import SPEC

PLANES = InputSpec(kind="tri_plane", resolution=8, channels=6, channel_base=0.01, channel_max=8)
SEPARATE = FieldOptions(styled=False, colour="separate")
NO_BACKGROUND = {"background": None, "normalized_distances": True}


def with_planes(**changes):
    inputs = replace(PLANES, **changes)
    return {**NO_BACKGROUND, "inputs": inputs, "foreground": SEPARATE, "field_num_layers": 0}


VARIANTS = {
    "no_background": NO_BACKGROUND,
    "styled_background": {"background": FieldOptions()},
    "plain_foreground": {"foreground": FieldOptions(styled=False)},
    "gaussian": {"foreground": FieldOptions(encoding="gaussian", append_position=True)},
    "no_encoding": {"foreground": FieldOptions(encoding="none", position_scale=2.0)},
    "skip": {"foreground": FieldOptions(skip=True), "field_num_layers": 4},
    "merged": {"foreground": FieldOptions(merged_density=True, colour="separate")},
    "sigmoid": {"foreground": FieldOptions(sigmoid_colour=True)},
    "normalized": {"foreground": FieldOptions(normalization="channels")},
    "softplus": {"density": "softplus"},
    "exponential": {"density": "truncated_exponential"},
    "one_pass": {"hierarchical": False},
    "log": {"depth_warp": "log", "depth_range": (0.8, 3.0)},
    "inverse": {"depth_warp": "inverse", "depth_range": (0.8, 3.0), **NO_BACKGROUND},
    "corners": {"corner_aligned": True},
    "rectangle": {"rectangle": (12, 16)},
    "kernel3": {"kernel_size": 3, "upsample_mode": "default", "use_noise": True},
    "resnet": {"architecture": "resnet"},
    "single": {"single_layer": True, "shared_rgb_style": True, "residual_image": False},
    "no_2d": {"resolution_vol": 16},
    "tri_plane": with_planes(),
    "tri_plane_apart": with_planes(kind="tri_plane_concat", append_octaves=2),
    "planes": with_planes(kind="multi_plane", num_planes=4, append_octaves=0),
    "volume": with_planes(kind="volume"),
    "multiscale": with_planes(kind="multiscale_volume", num_levels=3, level_frequencies=(4, 32)),
    "styled_planes": {**with_planes(), "foreground": FieldOptions(colour="separate")},
}


def make(**changes):
    torch.manual_seed(0)
    return Generator(replace(SPEC, **changes))


def scene(generator, batch=2):
    random = torch.Generator().manual_seed(1)
    ws = torch.randn(batch, generator.num_ws, generator.w_dim, generator=random)
    code = torch.randn(batch, generator.background_dim, generator=random)
    yaw = torch.linspace(-0.2, 0.2, batch)
    return ws, orbit_cameras(yaw, torch.full((batch,), 1.5)), code


def render(generator, options=None, draws=None, ws=None):
    own, cameras, code = scene(generator)
    ws = own if ws is None else ws
    return generator.synthesis(ws, cameras, background_code=code, options=options, draws=draws)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_learns_and_every_style_counts(name):
    generator = make(**VARIANTS[name]).train()
    out = render(generator, RenderOptions(path_pixels=4))
    assert out.image.shape == (2, 3, 16, 16)
    if generator.spec.block_resolutions:
        assert out.path_loss is not None
    out.image.square().mean().backward()
    idle = [n for n, p in generator.named_parameters() if p.grad is None and "mapping" not in n]
    assert idle == []
    # In evaluation too gradients follow the ambient mode (Q15).
    generator.eval()
    ws = scene(generator)[0].requires_grad_(True)
    render(generator, ws=ws).image.square().mean().backward()
    used = ws.grad.abs().amax(dim=(0, 2)) > 0
    if name == "styled_planes":
        # Without hidden blocks the density takes the first layer's style; the next has no use.
        used[generator.inputs.num_ws + 1] = True
    assert used.all()
    with torch.no_grad():
        assert not render(generator).image.requires_grad


@pytest.mark.parametrize("name", ["tri_plane", "volume", "multiscale", "sigmoid", "kernel3"])
def test_path_lengths_have_gradients(name):
    """The penalty on gradients of images needs second derivatives of every operation."""
    generator = make(**VARIANTS[name]).train()
    ws = scene(generator)[0].requires_grad_(True)
    image = render(generator, ws=ws).image
    slopes = torch.autograd.grad((image * torch.randn_like(image)).sum(), ws, create_graph=True)[0]
    slopes.square().sum().backward()
    for parameter in generator.foreground.parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all()
    assert generator.foreground.feature_head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_survives_its_files(name):
    generator = make(**VARIANTS[name]).eval()
    spec = GeneratorSpec.from_dict(json.loads(json.dumps(generator.spec.to_dict())))
    assert spec == generator.spec
    torch.manual_seed(1)
    other = Generator(spec).eval()
    other.load_state_dict(generator.state_dict())
    with torch.no_grad():
        assert torch.equal(render(other).image, render(generator).image)


def test_rows_of_styles_have_the_original_order():
    """Planes, foreground, background, 2-D blocks: changing one group leaves the others alone."""
    generator = make(
        inputs=PLANES, background=FieldOptions(), foreground=FieldOptions(colour="separate")
    ).eval()
    groups = [generator.inputs.num_ws, generator.foreground.num_ws, generator.background.num_ws]
    assert groups == [2, 4, 4]
    assert generator.num_field_ws == sum(groups)
    base = scene(generator)[0]
    with torch.no_grad():
        plain = render(generator, ws=base)
        last = base.clone()
        last[:, generator.num_field_ws :] += 1
        changed = render(generator, ws=last)
        assert torch.equal(changed.image_low, plain.image_low)
        assert not torch.equal(changed.image, plain.image)
        behind = base.clone()
        behind[:, 6:10] += 1
        changed = render(generator, ws=behind)
        assert torch.equal(changed.weights, plain.weights)
        assert not torch.equal(changed.background_weights, plain.background_weights)


def test_white_wall_and_open_rays():
    images = {}
    for emptiness in ("open", "white"):
        generator = make(background=None, emptiness=emptiness).eval()
        with torch.no_grad():
            generator.foreground.sigma_head.bias.fill_(-1e3)  # nothing there
            images[emptiness] = render(generator).image_low
    assert images["open"].abs().max() < 1e-6
    assert (images["white"] - 1).abs().max() < 1e-6
    # The path regulariser compares with the same wall: empty rays agree on white.
    generator = make(background=None, emptiness="white", residual_image=True).train()
    with torch.no_grad():
        generator.foreground.sigma_head.bias.fill_(-1e3)
        for parameter in generator.upsampler.parameters():
            parameter.zero_()
        loss = render(generator, RenderOptions(path_pixels=2)).path_loss
    assert loss.max() < 0.5  # pixels at the border are darker: the upsampling filter ends there
    with pytest.raises(ValueError, match="emptiness='white' needs background=None"):
        make(emptiness="white")


def test_rectangle_is_black_outside():
    with torch.no_grad():
        image = render(make(rectangle=(12, 16)).eval()).image
        whole = render(make().eval()).image
    assert (image[:, :, :2] == -1).all()
    assert (image[:, :, -2:] == -1).all()
    assert torch.equal(image[:, :, 2:-2], whole[:, :, 2:-2])


def test_growing_the_field_alone():
    generator = make(grow_field=True, resolution_start=4).eval()
    with torch.no_grad():
        out = render(generator, RenderOptions(alpha=0.3))
    assert out.image.shape[-1] == 16
    assert out.opacity.shape[-1] == 5  # int(4 * .7 + 8 * .3); resized to 8 for the blocks (Q6)
    assert out.features.shape[-1] == out.image_low.shape[-1] == 8
    sizes = {"resolution_start": 16, "resolution_vol": 32, "img_resolution": 64}
    found = [stage(a, **sizes, grow_field=True).field_resolution for a in (0, 0.5, 1, -1)]
    assert found == [16, 24, 32, 32]


def test_samples_without_a_curriculum():
    generator = make(samples_without_curriculum=6).eval()
    with torch.no_grad():
        assert render(generator, RenderOptions(alpha=-1)).depths.shape[-1] == 12
        assert render(generator, RenderOptions(alpha=1)).depths.shape[-1] == 8


def test_one_pass_has_no_fine_depths():
    with torch.no_grad():
        out = render(make(hierarchical=False).eval())
    assert out.depths.shape[-1] == 4
    assert out.depths_fine.shape[-1] == 0


def test_options_that_bend_features_equal_their_definition():
    """One sample per ray at full weight: the map is the field's own output."""
    generator = make(foreground=FieldOptions(sigmoid_colour=True), background=None).eval()
    with torch.no_grad():
        low = render(generator).image_low
    assert low.min() >= 0
    assert low.max() <= 1
    for normalization, dim in (("channels", 1), ("rows", 3)):
        options = FieldOptions(normalization=normalization)
        generator = make(foreground=options, background=None, hierarchical=False).eval()
        ends = torch.linspace(0, 1, 2).expand(2, 64, 2)
        with torch.no_grad():
            generator.foreground.sigma_head.bias.fill_(-1e3)  # the closing sample takes all
            out = render(generator, RenderOptions(depths=(ends, ends)))
        norms = out.features.norm(dim=dim)
        assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)


def test_row_normalization_refuses_loose_rays():
    generator = make(foreground=FieldOptions(normalization="rows")).train()
    with pytest.raises(ValueError, match="use 'channels' with the path regulariser"):
        render(generator, RenderOptions(path_pixels=3))


def test_labels_condition_the_styles():
    generator = make(c_dim=3)
    z = torch.randn(2, 8)
    first, second = (generator.mapping(z, torch.eye(3)[[i, i]]) for i in (0, 1))
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match=r"c must be \[2, 3\], got None"):
        generator.mapping(z)
    out = generator(z, scene(generator)[1], background_code=torch.zeros(2, 4), c=torch.eye(3)[:2])
    out.image.sum().backward()
    assert generator.mapping_network.embed.weight.grad.abs().max() > 0


def test_camera_heads_of_originals_are_kept():
    """They have the last row of styles, which images do not depend on."""
    generator = make(camera_head=(8, 4, 2)).eval()
    assert generator.num_ws == make().num_ws + 1
    ws = scene(generator)[0]
    changed = ws.clone()
    changed[:, -1] += 1
    with torch.no_grad():
        same = render(generator, ws=ws).image, render(generator, ws=changed).image
        first, second = generator.camera_head(ws[:, -1]), generator.camera_head(changed[:, -1])
    assert torch.equal(*same)
    assert first.shape == (2, 2)
    assert not torch.equal(first, second)


def test_layer_noise_is_replayed():
    generator = make(**VARIANTS["tri_plane"], use_noise=True).train()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(1.0)
    sizes = (8, 16, 16)
    maps = tuple(torch.randn(2, 1, size, size) for size in sizes)
    uniforms = torch.rand(2, 64, 4)
    draws = RenderDraws(uniforms, uniforms, uniforms, uniforms, layer_noise=maps)
    opposite = replace(draws, layer_noise=tuple(-m for m in maps))
    with torch.no_grad():
        # Copies: running means move with every pass.
        first, second, other = (
            render(copy.deepcopy(generator), draws=each) for each in (draws, draws, opposite)
        )
    assert torch.allclose(first.image_low, second.image_low, atol=1e-5)
    assert not torch.allclose(first.image_low, other.image_low, atol=1e-2)


def test_roll_turns_the_image():
    generator = make(hierarchical=False).eval()
    quarter = torch.full((2,), math.pi / 2)
    with torch.no_grad():
        upright = render(generator).image_low
        turned = render(generator, RenderOptions(roll_rad=quarter)).image_low
    assert torch.allclose(turned, upright.rot90(-1, dims=(2, 3)), atol=1e-3)
    generator = make(cameras=CameraPrior(roll_deg=30.0)).train()
    uniforms, behind = torch.rand(2, 64, 4), torch.rand(2, 64, 2)
    draws = RenderDraws(uniforms, uniforms, uniforms, uniforms, behind, behind)
    with torch.no_grad():
        still = render(generator, draws=replace(draws, roll=torch.zeros(2))).image_low
        drawn = render(generator, draws=replace(draws, roll=torch.ones(2))).image_low
        asked = render(
            generator, RenderOptions(roll_rad=torch.full((2,), math.radians(15))), draws
        ).image_low
    assert torch.allclose(drawn, asked, atol=1e-5)
    assert not torch.allclose(drawn, still, atol=1e-2)
