import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs._launch import launch, run_command
from nfs.artifacts import read_manifest, verify
from nfs.config.base import ConfigError
from nfs.config.invert import InvertConfig
from nfs.errors import ArtifactError, InputError
from nfs.inversion import load_identity, search_trial
from nfs.inversion.calibration import calibrate, shifted_copy
from nfs.inversion.evaluation import Latent, reproduce
from nfs.perceptual import PixelDistance
from tests.unit.inversion_fakes import SIZE_PX, tiny_generator, write_checkpoint, write_clip

SCHEMA = "nfs.config.invert:InvertConfig"


@pytest.fixture
def tree(tmp_path):
    clips, fits = write_clip(tmp_path)
    return {
        "checkpoint": write_checkpoint(tmp_path / "checkpoint"),
        "clips": clips,
        "fits": fits,
        "num_frames": 2,
        "num_held_out": 1,
        "perceptual": "pixel",
        "storage": str(tmp_path / "runs"),
        "launch": {"kind": "local"},
        "tracking": {"kind": "null"},
        "project": {"num_steps": 4, "num_w_samples": 10, "learning_rate": 0.1},
        "tune": {"num_steps": 6, "learning_rate": 0.005, "stop_factor": None},
        "save_every": 2,
    }


def config_of(tree, **changes):
    return InvertConfig.from_tree(tree).override(changes)


def test_the_job_writes_an_identity_that_renders_the_same(tree):
    result = launch("invert", config_of(tree), quiet=True)
    uri = result["artifacts"]["identity"]
    assert verify(uri) == []
    manifest = read_manifest(uri, kind="identity")
    assert len(manifest.parents) == 2
    assert manifest.extra["perceptual"]["name"] == "pixel"
    identity = load_identity(uri)
    assert identity.cam2world.shape == (2, 4, 4)
    assert len(identity.coefficients) == len(identity.frame_indices) == 2
    assert identity.reference_coefficients.pack().shape == (1, 257)
    assert identity.model_checksum == "abc"
    latent = Latent(identity.pivot_ws, identity.background_code)
    image = reproduce(identity.generator, latent, identity.reference_cam2world[None])
    assert image.shape == (1, 3, SIZE_PX, SIZE_PX)
    metrics = result["metrics"]
    assert metrics["tuned_perceptual_pixel"] < metrics["projected_perceptual_pixel"]
    assert metrics["tune_steps"] == 6
    assert {"held_out_l2", "depth_relief", "stop_unit"} <= set(metrics)
    losses = json.loads(Path(uri, "losses.json").read_text())
    assert len(losses["projection"]) == 4
    for name in ("preview", "frames", "held_out"):
        assert Path(uri, f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_generator_in_the_middle_of_its_growth_is_refused(tree):
    file = Path(tree["checkpoint"], "model.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha": 0.0}))
    with pytest.raises(InputError, match=r"growth stage 0, its images have 8 of 16 px"):
        launch("invert", config_of(tree), quiet=True)


def test_an_interrupted_job_continues_to_the_same_identity(tree, tmp_path, monkeypatch):
    whole = launch("invert", config_of(tree), quiet=True)["artifacts"]["identity"]
    config = config_of(tree, storage=str(tmp_path / "other"))
    from nfs.inversion import builders

    calls = []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(builders, "report_progress", killed)
    with pytest.raises(KeyboardInterrupt):
        launch("invert", config, quiet=True)
    monkeypatch.undo()
    found = launch("invert", config, quiet=True)["artifacts"]["identity"]
    first, second = load_identity(whole), load_identity(found)
    assert torch.equal(first.pivot_ws, second.pivot_ws)
    states = [i.generator.state_dict() for i in (first, second)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_hidden_tiles_are_the_held_out_part_of_one_frame(tree):
    config = config_of(tree, num_frames=1, num_held_out=0, held_out_tiles=0.2)
    metrics = launch("invert", config, quiet=True)["metrics"]
    assert metrics["held_out_l2"] > 0


def test_a_search_trial_reports_the_objective_as_it_goes(tree, tmp_path):
    rows = []
    search_trial(tree, rows.append, tmp_path / "trial")
    assert [row["inversion/steps"] for row in rows][-1] == 10
    assert len(rows) >= 4
    assert all(np.isfinite(row["val/novel_view_score"]) for row in rows)
    again = []
    search_trial(tree, again.append, tmp_path / "trial")
    assert again[-1]["val/novel_view_score"] == pytest.approx(rows[-1]["val/novel_view_score"])
    with pytest.raises(ConfigError, match="num_held_out"):
        search_trial({**tree, "num_held_out": 0}, rows.append, tmp_path / "other")


def test_a_missing_identity_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        load_identity(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": None}, "give clips and fits"),
        ({"portrait": "a.png"}, "leave out clips, fits, num_frames, num_held_out"),
        ({"project.delta_weight": 1.0}, "no effect with space=w"),
        ({"tune.identity_weight": 1.0}, "add dlib"),
        ({"launch.num_workers": 2}, "one identity is one optimisation"),
        ({"tune.l2_weight": 0, "tune.perceptual_weight": 0}, "nothing to fit"),
    ],
)
def test_settings_that_cannot_work_are_refused(tree, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(tree, **changes)


@pytest.mark.parametrize("name", ["smoke", "base", "demo"])
def test_shipped_configurations_resolve(name, repository, capsys):
    assert (
        run_command(
            "invert", SCHEMA, [f"{repository}/jobs/configs/invert/{name}.yaml", "--dry-run"]
        )
        == 0
    )
    assert "num_steps" in capsys.readouterr().out


def test_calibration_is_the_distance_to_near_copies():
    images = torch.rand(2, 3, SIZE_PX, SIZE_PX) * 2 - 1
    found = calibrate(PixelDistance(), images)
    assert 0 < found.jpeg < found.shift
    assert min(found.jpeg, found.shift) <= found.unit <= max(found.jpeg, found.shift)
    moved = shifted_copy(images, 1, 0)
    assert torch.equal(moved[..., 1:], images[..., :-1])
    assert torch.equal(shifted_copy(images, 0, -1)[:, :, :-1], images[:, :, 1:])


def test_the_generator_of_the_checkpoint_is_not_touched(tree):
    before = tiny_generator().state_dict()
    launch("invert", config_of(tree), quiet=True)
    from nfs.stylenerf.export import load_generator

    after = load_generator(tree["checkpoint"]).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
