"""Regularisers, augmentation strength, passes and conditions of the StyleNeRF training."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from nfs.geometry.rays import pixel_grid
from nfs.stylenerf import Discriminator, Generator
from nfs.stylenerf.adaptive import AdaptiveAugment
from nfs.stylenerf.cameras import draw_positions
from nfs.stylenerf.field_options import FieldOptions, InputSpec
from nfs.stylenerf.generator import RenderOptions
from nfs.stylenerf.latents import Conditions, draw_inputs
from nfs.stylenerf.losses import path_lengths, real_loss
from nfs.stylenerf.path_regularizer import _tile, _untile, path_loss, strided_pixels
from nfs.stylenerf.phases import Critic, generator_path_length
from nfs.stylenerf.players import compiled_network
from nfs.stylenerf.rendering import RaySamples
from nfs.stylenerf.schedule import whole_stage
from nfs.stylenerf.settings import AugmentSettings, GanSettings, SpeedSettings
from nfs.stylenerf.spec import CameraPrior
from nfs.stylenerf.task import StyleNerfTask
from tests.stylenerf_tiny import D_SPEC, SETTINGS, SPEC

CPU = torch.device("cpu")


class OneProcess:
    """The part of a worker context that a task uses."""

    device = CPU

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def average(self, tensors: list[torch.Tensor]) -> None:
        pass


def make_task(spec=SPEC, d_spec=D_SPEC, **changes) -> StyleNerfTask:
    torch.manual_seed(0)
    settings = replace(SETTINGS, growth_end_kimg=0.0, **changes)
    task = StyleNerfTask(Generator(spec), Discriminator(d_spec), settings)
    task.setup(OneProcess())
    return task


def batch(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=random)
    return {"image": images, **extra}


def test_strided_pixels_are_the_images_pixels():
    uniforms = torch.tensor([[0.0, 0.0], [0.99, 0.3]])
    pixels = strided_pixels(16, 4, uniforms)
    rows, columns = pixels.index.reshape(2, 4, 4) // 16, pixels.index.reshape(2, 4, 4) % 16
    assert columns[0, 0].tolist() == [0, 4, 8, 12]
    assert columns[1, 0].tolist() == [3, 7, 11, 15]
    assert rows[1, :, 0].tolist() == [1, 5, 9, 13]
    assert torch.equal(pixels.coordinates[1], pixel_grid(16)[pixels.index[1]])
    with pytest.raises(ValueError, match="5 regulariser pixels per side exceed an image of 4 px"):
        strided_pixels(4, 5, uniforms)


@pytest.mark.parametrize("samples", [1, 7, 12, 32])
def test_tiles_keep_every_sample(samples):
    values = torch.randn(2, 9, samples, 5)
    tiled = _tile(values, 3)
    assert tiled.shape[1] == 5
    assert tiled.shape[2] * tiled.shape[3] == 9 * samples
    assert torch.equal(_untile(tiled, 3), values)


def test_one_opaque_sample_per_ray_gives_the_colour_of_its_pixel():
    """Points at the first resolution go through no block, so their colours must be the image's."""
    generator = Generator(replace(SPEC, img_resolution=8)).train()
    image = torch.rand(2, 3, 8, 8)
    pixels = strided_pixels(8, 4, torch.rand(2, 2))
    seen = image.flatten(2).gather(2, pixels.index[:, None].expand(-1, 3, -1)).transpose(1, 2)
    features = torch.cat([seen, torch.zeros(2, 16, SPEC.feature_dim)], dim=2)[:, :, None]
    samples = RaySamples(features, torch.ones(2, 16, 1))
    ws = torch.zeros(2, 0, SPEC.w_dim)
    loss = path_loss(generator.upsampler, samples, ws, (image, pixels))
    assert torch.equal(loss, torch.zeros(2))
    shifted = RaySamples(features + 0.5, samples.weights)
    loss = path_loss(generator.upsampler, shifted, ws, (image, pixels))
    torch.testing.assert_close(loss, torch.full((2,), 2 * 3 * 0.25))


def test_the_regulariser_reaches_field_and_blocks_and_its_fade_is_an_option():
    torch.manual_seed(0)
    generator = Generator(replace(SPEC, img_resolution=32)).train()
    inputs = draw_inputs(generator, 2, conditions=Conditions(), mixing_prob=0.0)
    state = generator.state_dict()
    losses = []
    for fade in (False, True):
        generator.load_state_dict({k: v.clone() for k, v in state.items()})
        torch.manual_seed(1)
        options = RenderOptions(alpha=0.75, path_pixels=4, path_fade=fade)
        loss = inputs.render(generator, options).path_loss
        assert loss.shape == (2,)
        losses.append(loss.detach())
    assert not torch.allclose(losses[0], losses[1])
    loss.sum().backward()
    for part in (generator.foreground, generator.background, generator.upsampler):
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())
    options = RenderOptions(alpha=0.0, path_pixels=4)
    assert inputs.render(generator, options).path_loss is None
    assert inputs.render(generator.eval(), RenderOptions(path_pixels=4)).path_loss is None


def test_path_lengths_of_a_linear_generator():
    ws = torch.randn(2, 3, 4, requires_grad=True)
    image = ws.sum(dim=1)[:, :3, None, None].expand(2, 3, 2, 2)
    noise = torch.ones(2, 3, 2, 2)
    # Each of three style entries moves four pixels by one: slope 4 / sqrt(4) in every row.
    expected = torch.full((2,), (3 * 2.0**2) ** 0.5)
    torch.testing.assert_close(path_lengths(image, ws, noise), expected)


def test_the_mean_path_length_follows_and_carries_gradients():
    task = make_task()
    inputs = draw_inputs(task.G, 2, conditions=Conditions(), mixing_prob=0.0)
    rendering = inputs.render(task.G, RenderOptions())
    noise = torch.randn_like(rendering.image)
    outcome, mean = generator_path_length(rendering, noise, torch.tensor(0.0), SETTINGS)
    lengths = path_lengths(rendering.image, rendering.ws, noise)
    torch.testing.assert_close(mean, 0.01 * lengths.mean())
    assert not mean.requires_grad
    expected = 8 * (lengths - mean).square().mean() / 4 * SETTINGS.pl_interval / 1
    torch.testing.assert_close(outcome.total, expected)


def test_label_smoothing_mixes_both_losses():
    logits = torch.tensor([[0.3], [-2.0]])
    plain, opposite = real_loss(logits), real_loss(-logits)
    torch.testing.assert_close(real_loss(logits, 0.1), 0.9 * plain + 0.1 * opposite)


def test_strength_follows_the_sign_of_real_logits_within_its_limits():
    settings = AugmentSettings("bgc", initial_p=0.0, target=0.6, kimg=0.1, every=2)
    augment = AdaptiveAugment(settings, 10, CPU)
    images = torch.rand(2, 3, 16, 16)
    assert augment(images) is images
    augment.observe(torch.tensor(1.0))
    assert augment.p == 0.0
    half_way = augment.state_dict()
    augment.observe(torch.tensor(0.8))
    assert augment.p == pytest.approx(2 * 10 / 100)
    assert not torch.equal(augment(images), images)
    resumed = AdaptiveAugment(settings, 10, CPU)
    resumed.load_state_dict(half_way)
    resumed.observe(torch.tensor(0.8))
    assert resumed.state_dict() == augment.state_dict()
    for _ in range(20):
        augment.observe(torch.tensor(1.0))
    assert augment.p == 1.0
    for _ in range(20):
        augment.observe(torch.tensor(-1.0))
    assert augment.p == 0.0
    fixed = AdaptiveAugment(AugmentSettings("bgc", initial_p=0.3), 10, CPU)
    fixed.observe(torch.tensor(1.0))
    assert fixed.p == 0.3


def test_passes_divide_a_batch_without_splitting_images():
    settings = GanSettings(batch_size=24, micro_batch=5)
    assert [settings.num_rounds(n) for n in (4, 5, 6, 12, 7)] == [1, 1, 2, 3, 7]
    task = make_task(micro_batch=2)
    whole = make_task()
    parts = task.rounds(batch(), 0)
    assert [len(part.real) for part in parts] == [2, 2]
    assert torch.equal(torch.cat([p.real for p in parts]), whole.rounds(batch(), 0)[0].real)
    metrics = task.train_step(batch(), 0)
    assert metrics.keys() == whole.train_step(batch(), 0).keys()


def test_growth_stages():
    settings = replace(SETTINGS, growth_start_kimg=1, growth_end_kimg=3, growth_first_alpha=0.5)
    assert [settings.alpha(n) for n in (0, 2000, 3000, 9000)] == [0.5, 0.75, 1.0, 1.0]
    stays = replace(SETTINGS, growth_end_kimg=None)
    assert stays.alpha(10**9) == 0.0


def test_labels_reach_both_networks():
    task = make_task(replace(SPEC, c_dim=3), replace(D_SPEC, c_dim=3, mapping_num_layers=2))
    labels = torch.eye(3)[[0, 1, 2, 0]]
    task.train_step(batch(label=labels), 0)
    embed = task.G.mapping_network.embed
    assert embed is not None
    assert float(embed.weight.grad.abs().sum()) > 0
    assert task.D.label_mapping is not None
    assert all(p in task.d.optimizer.state for p in task.D.label_mapping.parameters())
    inputs = draw_inputs(task.G, 4, conditions=Conditions(c=labels), mixing_prob=0.0)
    assert sorted(inputs.c.argmax(dim=1).tolist()) == [0, 0, 1, 2]


def test_a_discriminator_may_predict_cameras():
    task = make_task(d_spec=replace(D_SPEC, camera="uvr", mapping_num_layers=2))
    metrics = task.train_step(batch(), 0)
    assert {"loss/g_camera", "loss/d_camera"} <= metrics.keys()
    head = task.D.camera_head
    assert head is not None
    assert all(float(task.d.optimizer.state[p]["exp_avg_sq"].sum()) > 0 for p in head.parameters())


@pytest.mark.parametrize("changes", [{"dual_discriminator": True}, {"dual_input_ratio": 2}])
def test_low_resolution_images_reach_the_discriminator(changes):
    task = make_task(d_spec=replace(D_SPEC, **changes), augment=None)
    inputs = draw_inputs(task.G, 4, conditions=Conditions(), mixing_prob=0.0)
    with torch.no_grad():
        fakes = inputs.fakes(inputs.render(task.G, RenderOptions()))
        critic = Critic(task.D, 1.0)
        logits, _ = critic.fakes(fakes)
        other, _ = critic.fakes(replace(fakes, image_low=fakes.image_low + 1))
    assert len(logits) == (8 if "dual_discriminator" in changes else 4)
    assert not torch.equal(logits, other)
    assert "loss/d" in task.train_step(batch(), 0)


def test_cameras_of_images_and_of_the_prior_stand_at_the_same_places():
    task = make_task(image_cameras=True)
    yaw_pitch = torch.stack([torch.linspace(-0.3, 0.3, 4), torch.full((4,), 1.5)], dim=1)
    conditions = task.rounds(batch(yaw_pitch=yaw_pitch), 0)[0].conditions
    inputs = draw_inputs(task.G, 4, conditions=conditions, mixing_prob=0.0)
    shares = torch.sort(inputs.position[:, 0]).values
    torch.testing.assert_close(shares, torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]), atol=1e-5, rtol=0)
    assert torch.equal(inputs.position[:, 2], torch.zeros(4))
    torch.manual_seed(0)
    drawn = draw_positions(SPEC.cameras, 4)
    from nfs.stylenerf.latents import _position

    torch.testing.assert_close(
        _position(SPEC.cameras, drawn.cam2world), drawn.position, atol=1e-4, rtol=0
    )


def test_averages_of_both_networks_resume():
    task = make_task(discriminator_ema=True)
    task.train_step(batch(), 0)
    other = make_task(discriminator_ema=True)
    other.load_state_dict(task.state_dict())
    for ours, theirs in ((other.G_ema, task.G_ema), (other.D_ema, task.D_ema)):
        expected = theirs.module.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in ours.module.state_dict().items())
    assert not torch.equal(task.D_ema.module.epilogue.out.weight, task.D.epilogue.out.weight)
    assert torch.equal(other.pl_mean, task.pl_mean)
    assert float(task.pl_mean) > 0


@pytest.mark.parametrize(
    ("speed", "tolerance"),
    [
        (SpeedSettings(recompute_field=True), 1e-6),
        (SpeedSettings(channels_last=True), 1e-5),
        (SpeedSettings(precision="bf16"), 3e-2),
        # Processors that calculate in fp16 (AVX512-FP16) also add in it; others pass at 1e-2.
        (SpeedSettings(precision="fp16"), 2e-2),
    ],
)
def test_speed_changes_only_rounding(speed, tolerance):
    found = []
    for settings in (SpeedSettings(), speed):
        task = make_task(speed=settings, augment=None)
        torch.manual_seed(5)
        metrics = task.train_step(batch(), 0)
        wanted = ("loss/", "grad/")
        found.append({k: float(v) for k, v in metrics.items() if k.startswith(wanted)})
        assert all(p.dtype == torch.float32 for p in task.G.parameters())
    assert found[1] == pytest.approx(found[0], rel=tolerance)


def test_images_stay_single_in_bfloat16():
    task = make_task()
    inputs = draw_inputs(task.G, 2, conditions=Conditions(), mixing_prob=0.0)
    rendering = inputs.render(task.G, RenderOptions(path_pixels=4), "bf16")
    for value in (rendering.image, rendering.image_low, rendering.weights, rendering.path_loss):
        assert value.dtype == torch.float32
    exact = inputs.render(task.G, RenderOptions())
    assert torch.equal(
        inputs.render(task.G.eval(), RenderOptions(), "bf16").depths_coarse,
        inputs.render(task.G, RenderOptions()).depths_coarse,
    )
    assert rendering.image.shape == exact.image.shape


def test_one_compiled_graph_serves_a_growth_stage():
    generator = Generator(replace(SPEC, img_resolution=32)).train()
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(generator, backend=counter, fullgraph=True)
    state = {k: v.clone() for k, v in generator.state_dict().items()}
    for alpha in (0.6, 0.7, 0.9):
        torch.manual_seed(3)
        inputs = draw_inputs(generator, 2, conditions=Conditions(), mixing_prob=1.0)
        images = []
        stage_alpha, fade = whole_stage(alpha, 2)
        assert stage_alpha == 0.75
        options = RenderOptions(alpha=stage_alpha, fade=torch.tensor(fade), path_pixels=4)
        plain = RenderOptions(alpha=alpha, path_pixels=4)
        for network, chosen in ((compiled, options), (generator, plain)):
            generator.load_state_dict(state)
            torch.manual_seed(4)
            images.append(inputs.render(network, chosen).image.detach())
        torch.testing.assert_close(images[0], images[1])
    assert counter.frame_count == 1


def test_later_growth_stages_are_compiled_too():
    class Grows(torch.nn.Module):
        def forward(self, x: torch.Tensor, stage: str) -> torch.Tensor:
            return x * len(stage)

    counter = CompileCounter()
    torch._dynamo.reset()
    network = compiled_network(Grows(), counter)
    for stage in range(20):  # 5 resolutions, with and without gradients and mixed styles
        network(torch.ones(1), "x" * (stage + 1))
    assert counter.frame_count == 20


PLANES = replace(
    SPEC,
    inputs=InputSpec(kind="tri_plane", resolution=16, channels=4),
    foreground=FieldOptions(styled=False, colour="separate"),
    field_num_layers=0,
    background=None,
    normalized_distances=True,
    grow_field=True,
    kernel_size=3,
    upsample_mode="default",
)
SHUFFLED = replace(SPEC, upsample_mode="pixelshuffle", cameras=CameraPrior(gaussian=False))
WARPED = replace(SPEC, background=None, depth_warp="inverse", depth_range=(0.88, 3.2))


@pytest.mark.parametrize(
    ("spec", "d_spec", "changes"),
    [
        (PLANES, replace(D_SPEC, progressive=False), {"path_pixels": 0}),
        (SHUFFLED, D_SPEC, {"path_pixels": 0}),
        (WARPED, replace(D_SPEC, architecture="resnet", progressive=False), {}),
        (replace(SPEC, use_noise=True, kernel_size=3), replace(D_SPEC, fade=True), {}),
        (
            SPEC,
            replace(D_SPEC, camera="uvr", separate_camera=True, mapping_num_layers=2),
            {},
        ),
        (replace(SPEC, img_resolution=8), replace(D_SPEC, img_resolution=8), {}),
        (replace(SPEC, resolution_vol=4, resolution_start=4, residual_image=False), D_SPEC, {}),
    ],
    ids=["planes", "shuffled", "warped", "noise", "camera", "field_alone", "colours"],
)
def test_every_parameter_of_every_kind_of_network_is_trained(spec, d_spec, changes):
    task = make_task(spec, d_spec, **changes)
    task.train_step(batch(), 0)
    for player in (task.g, task.d):
        assert all(p in player.optimizer.state for p in player.parameters)
        assert len(player.parameters) == len(list(player.network.parameters()))
