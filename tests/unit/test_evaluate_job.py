"""`jobs.evaluate`: a checkpoint and photos to numbers and pictures."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from jobs import _evaluation
from jobs._launch import launch
from nfs.arcface.backbones import BackboneOptions, build_backbone
from nfs.arcface.export import export_backbone
from nfs.artifacts import read_manifest, verify
from nfs.config.evaluate import EvaluateConfig
from nfs.errors import ArtifactError, ConfigError, InputError
from nfs.stylenerf.export import export_generator
from nfs.training.checkpoint import write_checkpoint
from tests.evaluation_ranks import generator


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A random generator of 16 px and ten noise photos."""
    folder = tmp_path_factory.mktemp("inputs")
    export_generator(folder / "checkpoint", generator())
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(10):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")
    return folder


def config(inputs: Path, storage: Path, **changes: object) -> EvaluateConfig:
    tree = {
        "storage": str(storage),
        "checkpoint": str(inputs / "checkpoint"),
        "data": {"kind": "folder", "path": str(inputs / "photos")},
        "num_samples": 9,
        "num_views": 3,
        "grid_size": 2,
        "orbit_latents": 2,
        "orbit_frames": 6,
        "images_per_unit": 4,
        "batch_size": 3,
        "launch": {"kind": "local"},
        "tracking": {"kind": "jsonl"},
    }
    return EvaluateConfig.from_tree(tree | changes)


def test_evaluation_writes_numbers_and_pictures(inputs, tmp_path):
    result = launch("evaluate", config(inputs, tmp_path), quiet=True)
    uri = result["artifacts"]["evaluation"]
    manifest = read_manifest(uri, kind="evaluation")
    assert verify(uri) == []
    assert manifest.counts == {"views": 3, "real": 10, "generated": 9, "orbit": 12}
    metrics = result["metrics"]
    expected = {"frechet_face", "kernel_face", "precision_face", "identity_views_dlib", "relief"}
    assert {f"eval/{name}" for name in expected} <= metrics.keys()
    assert metrics["eval/num_real"] == 10
    assert metrics["memory/rss_peak_mb"] > 50
    assert manifest.extra["metrics"] == json.loads(Path(uri, "metrics.json").read_text())
    assert np.asarray(Image.open(f"{uri}/grid.png")).shape == (2 * 16 + 2, 4 * 16 + 6, 3)
    with av.open(f"{uri}/orbit.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 6
    assert frames[0].shape == (32, 32, 3)
    logged = (tmp_path / result["run"] / "tracking" / "metrics.jsonl").read_text()
    assert "eval/frechet_face" in logged
    assert launch("evaluate", config(inputs, tmp_path), quiet=True)["reused"]


def test_a_killed_evaluation_goes_on_and_shares_real_features(inputs, tmp_path, monkeypatch):
    shared = str(tmp_path / "features")
    whole = launch("evaluate", config(inputs, tmp_path, real_features=shared), run_name="whole")
    made = []
    original = _evaluation.EvaluateUnit.__call__

    def counting(self, item):
        made.append(item["key"].split("-")[0])
        return original(self, item)

    monkeypatch.setattr(_evaluation.EvaluateUnit, "__call__", counting)
    # As if it had been killed before the last generated unit and the result.
    part = tmp_path / "part" / "work"
    shutil.copytree(tmp_path / "whole" / "work", part)
    sorted((part / "units").glob("generated-*"))[-1].unlink()
    again = launch("evaluate", config(inputs, tmp_path, real_features=shared), run_name="part")
    assert made == ["generated"]
    same = [k for k in whole["metrics"] if k.startswith("eval/") and not k.endswith("_per_s")]
    assert len(same) > 10
    assert {k: again["metrics"][k] for k in same} == {k: whole["metrics"][k] for k in same}


def test_other_weights_make_other_units(inputs, tmp_path):
    found = _evaluation.Evaluated(config(inputs, tmp_path))
    torch.manual_seed(1)
    export_generator(tmp_path / "other", type(generator())(generator().spec))
    other = _evaluation.Evaluated(config(inputs, tmp_path, checkpoint=str(tmp_path / "other")))
    for kind in (_evaluation.GENERATED, _evaluation.VIEWS, _evaluation.ORBIT):
        assert found.mark(kind) != other.mark(kind)
    assert found.mark(_evaluation.REAL) == other.mark(_evaluation.REAL)


def test_the_growth_stage_is_the_checkpoint_s_or_the_configured_one(inputs, tmp_path):
    export_generator(tmp_path / "half", generator(), alpha=0.5)
    half = _evaluation.Evaluated(config(inputs, tmp_path, checkpoint=str(tmp_path / "half")))
    assert half.gallery.alpha == 0.5
    whole = _evaluation.Evaluated(config(inputs, tmp_path))
    assert whole.gallery.alpha == 1.0
    asked = _evaluation.Evaluated(config(inputs, tmp_path, alpha=0.5))
    assert asked.gallery.alpha == 0.5
    assert asked.mark(_evaluation.VIEWS) == half.mark(_evaluation.VIEWS)
    assert asked.mark(_evaluation.VIEWS) != whole.mark(_evaluation.VIEWS)


def test_wrong_inputs_are_named(inputs, tmp_path):
    write_checkpoint(tmp_path / "audio", {"a": torch.zeros(1)}, model={"kind": "audio2exp"})
    with pytest.raises(ArtifactError, match="holds a 'audio2exp' model, need 'stylenerf'"):
        launch("evaluate", config(inputs, tmp_path, checkpoint=str(tmp_path / "audio")))
    weights = {"kind": "inception", "path": str(tmp_path / "none.pt"), "sha256": "0" * 64}
    with pytest.raises(InputError, match="no such file"):
        launch("evaluate", config(inputs, tmp_path, features=weights))
    with pytest.raises(ConfigError, match="sha256"):
        config(inputs, tmp_path, features=weights | {"sha256": "abc"})
    with pytest.raises(ConfigError, match="real_features has no effect without data"):
        config(inputs, tmp_path, data=None, num_samples=None, real_features="x")
    with pytest.raises(
        ConfigError, match=r"num_real, num_samples has .* num_real=null num_s.*null"
    ):
        config(inputs, tmp_path, data=None, num_real=4)


def test_a_generator_alone_is_measured_by_its_views(inputs, tmp_path):
    alone = config(inputs, tmp_path, data=None, num_samples=None)
    assert alone.num_generated == 0
    result = launch("evaluate", alone, quiet=True)
    counts = read_manifest(result["artifacts"]["evaluation"], kind="evaluation").counts
    assert counts == {"views": 3, "orbit": 12}
    assert config(inputs, tmp_path, num_samples=None).num_generated == 50_000


@pytest.mark.ray
def test_two_ray_workers_find_what_one_process_finds(inputs, tmp_path, ray_cluster):
    alone = launch("evaluate", config(inputs, tmp_path), run_name="alone")
    launch_settings = {"kind": "ray", "num_workers": 2}
    both = launch("evaluate", config(inputs, tmp_path, launch=launch_settings), run_name="both")
    same = [k for k in alone["metrics"] if k.startswith("eval/") and not k.endswith("_per_s")]
    assert {k: both["metrics"][k] for k in same} == {k: alone["metrics"][k] for k in same}


def test_an_arcface_checkpoint_can_judge(inputs, tmp_path):
    torch.manual_seed(0)
    options = BackboneOptions()
    backbone = build_backbone("mbf", embedding_size=32, options=options)
    export_backbone(tmp_path / "arcface", backbone, name="mbf", embedding_size=32, options=options)
    arcface = {"kind": "arcface", "checkpoint": str(tmp_path / "arcface")}
    changes = {"features": arcface, "identity": arcface, "orbit_latents": 0, "num_real": 4}
    metrics = launch("evaluate", config(inputs, tmp_path, **changes), quiet=True)["metrics"]
    assert {"eval/frechet_arcface_mbf", "eval/identity_views_arcface_mbf"} <= metrics.keys()
    assert not any("face" in key and "arcface" not in key for key in metrics)
