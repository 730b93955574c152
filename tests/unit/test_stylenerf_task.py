"""The training task and its parts: settings, losses, steps, growth, resume, checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nfs.config.train_stylenerf import TrainStylenerfConfig
from nfs.errors import ArtifactError, ConfigError, NonFiniteError
from nfs.stylenerf import Discriminator, Generator
from nfs.stylenerf.builders import build_discriminator, build_generator, build_prior, build_settings
from nfs.stylenerf.cameras import draw_cameras
from nfs.stylenerf.export import load_discriminator, load_generator
from nfs.stylenerf.losses import lazy_adam, r1_penalty
from nfs.stylenerf.settings import GanSettings
from nfs.stylenerf.spec import CameraPrior
from nfs.stylenerf.task import StyleNerfTask
from nfs.stylenerf.views import Gallery
from tests.stylenerf_tiny import D_SPEC, TINY

SPEC = TINY
SETTINGS = GanSettings(
    batch_size=2, r1_interval=2, pl_interval=2, path_pixels=4, ema_kimg=0.01, grid_size=2
)


class OneProcess:
    """The part of a worker context that a task uses."""

    device = torch.device("cpu")

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def average(self, tensors: list[torch.Tensor]) -> None:
        pass


def make_task(settings: GanSettings = SETTINGS) -> StyleNerfTask:
    torch.manual_seed(0)
    task = StyleNerfTask(Generator(SPEC), Discriminator(D_SPEC), settings)
    task.setup(OneProcess())
    return task


def step(task: StyleNerfTask, samples_seen: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(samples_seen)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    return task.train_step({"image": images}, samples_seen)


def flat(task: StyleNerfTask) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in (*task.G.parameters(), *task.D.parameters())])


@pytest.mark.parametrize("share_fakes", [False, True])
def test_a_step_moves_both_networks_and_the_average(share_fakes):
    task = make_task(replace(SETTINGS, share_fakes=share_fakes))
    before = flat(task)
    average = next(task.G_ema.module.parameters()).clone()
    metrics = step(task, 0)
    assert {"loss/g", "loss/g_path", "loss/g_path_length", "loss/d", "loss/d_r1"} <= metrics.keys()
    assert all(not value.requires_grad for value in metrics.values())
    assert (flat(task) != before).float().mean() > 0.9
    assert not torch.equal(next(task.G_ema.module.parameters()), average)
    assert not {"loss/d_r1", "loss/g_path_length"} & step(task, 2).keys()
    assert {"loss/d_r1", "loss/g_path_length"} <= step(task, 4).keys()


def test_resumed_steps_equal_uninterrupted_ones():
    straight, first = make_task(), make_task()
    for seen in (0, 2, 4):
        step(straight, seen)
    for seen in (0, 2):
        step(first, seen)
    second = make_task()
    torch.nn.init.zeros_(second.D.epilogue.out.weight)
    second.load_state_dict(first.state_dict())
    step(second, 4)
    assert torch.equal(flat(second), flat(straight))
    ours, theirs = second.G_ema.module.state_dict(), straight.G_ema.module.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_non_finite_loss_stops_before_the_step():
    task = make_task()
    with torch.no_grad():
        task.D.epilogue.out.bias.fill_(float("nan"))
    before = torch.cat([p.detach().flatten() for p in task.G.parameters()])
    with pytest.raises(NonFiniteError, match=r"loss/g.*samples_seen=6"):
        step(task, 6)
    assert torch.equal(torch.cat([p.detach().flatten() for p in task.G.parameters()]), before)


def test_growth_leaves_idle_blocks_alone_until_their_stage():
    task = make_task(replace(SETTINGS, growth_start_kimg=0.002, growth_end_kimg=0.01))
    idle = [*task.G.upsampler.blocks["16"].parameters(), *task.D.blocks["16"].parameters()]
    before = [p.detach().clone() for p in idle]
    metrics = step(task, 2)
    assert float(metrics["growth/alpha"]) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(idle, before, strict=True))
    assert not any(p in task.g.optimizer.state or p in task.d.optimizer.state for p in idle)
    step(task, 10)
    assert not any(torch.equal(a, b) for a, b in zip(idle, before, strict=True))
    assert task.settings.alpha(6) == pytest.approx(0.5)
    assert SETTINGS.alpha(0) == 1.0


def test_warm_start_reconstructs_before_the_discriminator_wakes():
    settings = replace(SETTINGS, warm_start_kimg=0.02, reconstruction_weight=10.0)
    task = make_task(settings)
    before = torch.cat([p.detach().flatten() for p in task.D.parameters()])
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=random)
    batch = {"image": images, "code": torch.randn(2, 8, generator=random)}
    errors = []
    for seen in range(0, 20, 2):
        metrics = task.train_step(batch, seen)
        assert "loss/d" not in metrics
        errors.append(float(metrics["loss/g_reconstruction"]))
    assert errors[-1] < errors[0]
    assert torch.equal(torch.cat([p.detach().flatten() for p in task.D.parameters()]), before)
    assert {"loss/d", "loss/g", "loss/g_reconstruction"} <= task.train_step(batch, 20).keys()
    assert settings.num_coded(18, 8) == 8
    assert settings.num_coded(20, 8) == 4
    assert SETTINGS.num_coded(0, 8) == 0


def test_rates_fall_linearly():
    settings = replace(SETTINGS, total_samples=20, final_lr_scale=0.5)
    assert [settings.lr_scale(n) for n in (0, 10, 20, 30)] == [1.0, 0.75, 0.5, 0.5]
    assert SETTINGS.lr_scale(10**6) == 1.0
    task = make_task(settings)
    step(task, 10)
    assert task.g.optimizer.param_groups[0]["lr"] == pytest.approx(0.75 * 0.0025 * 2 / 3)


def test_r1_of_a_known_function():
    real = torch.randn(2, 3, 4, 4, requires_grad=True)
    logits = (real * 2).flatten(1).sum(dim=1, keepdim=True)
    assert float(r1_penalty(logits, real, 0.5)) == pytest.approx(0.25 * 4 * 48)


def test_lazy_correction():
    assert lazy_adam(0.0025, (0.0, 0.99), None) == (0.0025, (0.0, 0.99))
    lr, betas = lazy_adam(0.0025, (0.0, 0.99), 16)
    assert lr == pytest.approx(0.0025 * 16 / 17)
    assert betas == pytest.approx((0.0, 0.99 ** (16 / 17)))


@pytest.mark.parametrize("gaussian", [True, False])
def test_drawn_cameras_follow_the_prior(gaussian):
    from nfs.geometry.cameras import cam2world_to_yaw_pitch

    torch.manual_seed(0)
    prior = CameraPrior(yaw_rad=(0.1, 0.3), gaussian=gaussian)
    yaw, _ = cam2world_to_yaw_pitch(draw_cameras(prior, 2000))
    assert float(yaw.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(yaw.std()) == pytest.approx(0.1 if gaussian else 0.2 / 12**0.5, abs=0.01)


def test_evaluation_and_checkpoint_round_trip(tmp_path):
    task = make_task()
    step(task, 0)
    evaluation = task.evaluate(2)
    assert evaluation.images["samples"].shape == (2 * 16 + 2, 4 * 16 + 6, 3)
    keys = {"eval/opacity", "eval/depth_std", "eval/relief", "eval/flat_share", "eval/diversity"}
    assert keys <= evaluation.metrics.keys()
    task.export(tmp_path)
    for ema, network in ((True, task.G_ema.module), (False, task.G)):
        loaded = load_generator(tmp_path, ema=ema)
        assert not loaded.training
        assert loaded.spec == SPEC
        state = network.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
    assert Generator.from_checkpoint(tmp_path).spec == SPEC
    assert load_discriminator(tmp_path).spec == D_SPEC
    assert "Ask before you show them" in (tmp_path / "card.md").read_text()


def test_a_checkpoint_is_rendered_at_its_growth_stage(tmp_path):
    task = make_task(replace(SETTINGS, growth_start_kimg=0.002, growth_end_kimg=0.01))
    task.export(tmp_path / "untrained")
    assert load_generator(tmp_path / "untrained").alpha == 0.0
    step(task, 0)
    step(task, 2)
    task.export(tmp_path / "middle")
    resumed = make_task(task.settings)
    resumed.load_state_dict(task.state_dict())
    resumed.export(tmp_path / "resumed")
    for name in ("middle", "resumed"):
        assert load_generator(tmp_path / name).alpha == pytest.approx(0.25)
    generator = load_generator(tmp_path / "middle")
    found = Gallery(generator).views(0).image
    assert torch.equal(found, Gallery(generator, alpha=0.25).views(0).image)
    assert not torch.equal(found, Gallery(generator, alpha=1.0).views(0).image)
    # Checkpoints of before have no stage.
    model = json.loads((tmp_path / "middle" / "model.json").read_text())
    del model["alpha"]
    (tmp_path / "middle" / "model.json").write_text(json.dumps(model))
    assert load_generator(tmp_path / "middle").alpha == 1.0


def test_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="not a checkpoint directory"):
        load_generator(tmp_path)
    make_task().export(tmp_path)
    model = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(model.replace('"stylenerf"', '"arcface"'))
    with pytest.raises(ArtifactError, match="need 'stylenerf'"):
        load_generator(tmp_path)
    (tmp_path / "model.json").write_text(model.replace('"w_dim": 8', '"w_dim": 9'))
    with pytest.raises(ArtifactError, match="weights do not fit"):
        load_generator(tmp_path)


@pytest.mark.parametrize("name", ["smoke", "base", "demo"])
def test_shipped_configurations_build(repository, name):
    path = repository / "jobs/configs/train_stylenerf" / f"{name}.yaml"
    config = TrainStylenerfConfig.load(path, ["clips=x", "cameras={kind: prior}"])
    settings = build_settings(config)
    assert settings.batch_size == config.batch_size
    if name != "base":
        generator = build_generator(config, build_prior(config))
        assert generator.img_resolution == config.generator.img_resolution
        assert build_discriminator(config).spec.lowres_head == config.generator.resolution_start


def test_base_is_the_published_model(repository):
    config = TrainStylenerfConfig.load(repository / "jobs/configs/train_stylenerf/base.yaml")
    generator = build_generator(config, build_prior(config))
    assert sum(p.numel() for p in generator.parameters()) / 1e6 == pytest.approx(5.26, abs=0.005)
    discriminator = build_discriminator(config)
    count = sum(p.numel() for p in discriminator.parameters()) / 1e6
    assert count == pytest.approx(23.05, abs=0.005)
    assert generator.num_ws == 17


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generator.img_resolution=48", "not a power of two"),
        ("generator.resolution_vol=512", "resolution_start <= resolution_vol"),
        ("batch_size=6", "multiple of discriminator.mbstd_group_size"),
        ("launch.num_workers=3", "not divisible by launch.num_workers=3"),
        ("checkpoint_every=100", "not a multiple of log_every"),
        ("growth.end_kimg=1", "end_kimg is below start_kimg"),
        ("generator.depth_range=[2, 1]", "near < far"),
        ("loss.path_pixels=65", r"path_pixels=65 exceeds 64 px"),
        ("discriminator.dual_input_ratio=2", "augment distorts the image alone"),
    ],
)
def test_bad_settings_are_named(repository, override, message):
    path: Path = repository / "jobs/configs/train_stylenerf/base.yaml"
    with pytest.raises(ConfigError, match=message):
        TrainStylenerfConfig.load(
            path,
            [
                "launch.num_workers=1",
                "discriminator.mbstd_group_size=4",
                "augment={kind: fixed}",
                override,
            ],
        )
