"""`jobs.render` in this process: a tiny random identity, real face model, real files."""

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs._launch import launch
from nfs.artifacts import Store, read_manifest, verify, write_manifest
from nfs.artifacts.schemas import FITS
from nfs.audio.audio2exp import Audio2Exp
from nfs.config.render import RenderConfig
from nfs.errors import ArtifactError, ConfigError, InputError, NfsError
from nfs.geometry.cameras import face_rotation_to_cam2world
from nfs.inversion.identity import Extras, Identity, save_identity
from nfs.morphable.coefficients import Coefficients
from nfs.morphable.loading import load_model
from nfs.stylenerf.export import export_generator
from nfs.stylenerf.generator import Generator, RenderOptions
from nfs.stylenerf.spec import GeneratorSpec
from nfs.talker import artifact, orbit
from nfs.talker.builders import build_plan, build_renderer, load_inputs
from nfs.talker.plane import circle_cameras, world_to_plane
from nfs.talker.work import RenderFrames
from nfs.training.checkpoint import write_checkpoint

SPEC = GeneratorSpec(
    z_dim=8,
    w_dim=8,
    img_resolution=32,
    mapping_num_layers=1,
    field_hidden_dim=8,
    field_num_layers=2,
    background_dim=4,
    background_hidden_dim=8,
    background_num_layers=2,
    feature_dim=8,
    resolution_vol=16,
    resolution_start=16,
    num_samples=4,
    channel_base=1 / 128,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, head):
    """Paths of an identity, an Audio2Exp checkpoint, a fits artifact and a wav."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    model, generator = head, Generator(SPEC).eval()
    fit = Coefficients.zeros(2)
    fit.rotation[1] = torch.tensor([0.02, 0.1, 0.0])
    fit.expression[1, model.expression_names.index("jawOpen")] = 0.1
    identity = Identity(
        generator=generator,
        pivot_ws=generator.mapping(torch.randn(1, 8)).detach(),
        background_code=torch.randn(1, 4),
        cam2world=face_rotation_to_cam2world(fit.rotation_matrix),
        coefficients=fit,
        reference=1,
        model_id=model.model_id,
        model_checksum=model.checksum,
        clip_id="someone",
        frame_indices=[0, 7],
    )
    kind = {"kind": "stylenerf", "generator": SPEC.to_dict()}
    extras = Extras({}, {}, {}, kind, {}, (), {"name": "pixel"})
    save_identity(str(folder / "identity"), identity, extras)
    audio = Audio2Exp()
    write_checkpoint(folder / "audio2exp", audio.state_dict(), model={"kind": "audio2exp"})
    _write_fits(folder / "fits", model)
    _write_wav(folder / "speech.wav", seconds=0.37)
    return folder


@pytest.fixture(scope="module")
def head():
    return load_model()


@pytest.fixture(autouse=True)
def one_head(head, monkeypatch):
    """Read the face model once for all tests."""
    monkeypatch.setattr("nfs.talker.builders.load_model", lambda _: head)


def _write_fits(folder, model) -> None:
    jaw = model.expression_names.index("jawOpen")
    rows = []
    for index in range(12):
        expression = [0.0] * 64
        expression[jaw] = 0.05 * index
        row = {name: [0.0] * size for name, size in (("identity", 80), ("texture", 80))}
        row |= {"rotation_rad": [0.0] * 3, "translation": [0.0] * 3, "lighting": [0.0] * 27}
        row |= {"clip_id": "driver", "frame_index": index, "expression": expression}
        rows.append(row | {"nme_percent": 1.0, "photometric_l1": 0.0, "status": "ok"})
    table = pa.Table.from_pylist(rows, schema=FITS)
    Store(str(folder)).write_table("fits/driver.parquet", table)
    write_manifest(str(folder), kind="fits", config={})


def _write_wav(path, seconds: float) -> None:
    rate = 16000
    time_s = np.arange(round(seconds * rate)) / rate
    wave = (0.3 * np.sin(2 * np.pi * 220 * time_s) * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _config(folder, storage, **changes) -> RenderConfig:
    tree = {
        "storage": str(storage),
        "identity": str(folder / "identity"),
        "speech": str(folder / "speech.wav"),
        "expression": {"kind": "fits", "fits": str(folder / "fits")},
        "frames_per_unit": 3,
        "batch_size": 3,
        "output_size_px": 48,
        "launch": {"kind": "local"},
        "tracking": {"kind": "jsonl"},
    }
    return RenderConfig.from_tree(tree | changes)


def _streams(path):
    with av.open(str(path)) as container:
        video = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        return video, samples / 44100, dict(container.metadata)


def test_render_writes_a_complete_artifact(inputs, tmp_path):
    result = launch("render", _config(inputs, tmp_path), quiet=True)
    uri = result["artifacts"]["render"]
    assert read_manifest(uri, kind="render").counts == {"frames": 9}
    assert verify(uri) == []
    video, sound_s, metadata = _streams(f"{uri}/video.mp4")
    assert len(video) == 9  # 0.37 s at 25 fps
    assert video[0].shape == (48, 48, 3)
    assert abs(sound_s - 9 / 25) < 1 / 25 + 1024 / 44100
    assert "synthetic" in metadata["comment"]
    table = pq.read_table(f"{uri}/coefficients.parquet")
    assert table.num_rows == 9
    opening = table["mouth_opening"].to_numpy()
    assert opening[-1] > opening[0]
    assert result["metrics"]["render/frames"] == 9
    assert Store(result["directory"] + "/work").list(recursive=True) == []


def test_finished_render_is_not_repeated_and_changed_inputs_are_noticed(inputs, tmp_path):
    config = _config(inputs, tmp_path, max_frames=3)
    first = launch("render", config, run_name="r", quiet=True)
    again = launch("render", config, run_name="r", quiet=True)
    assert again["metrics"] == first["metrics"]
    model = build_plan(config, load_inputs(config))
    mark = artifact.fingerprint(config, model)
    uri = first["artifacts"]["render"]
    assert artifact.finished_metrics(uri, mark) is not None
    assert artifact.finished_metrics(uri, "another") is None


def test_a_killed_render_goes_on(inputs, tmp_path, monkeypatch):
    config = _config(inputs, tmp_path, max_frames=5)
    plain, calls = RenderFrames.__call__, []

    def dies(self, item):
        calls.append(item["key"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, item)

    monkeypatch.setattr(RenderFrames, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        launch("render", config, run_name="killed", quiet=True)
    result = launch("render", config, run_name="killed", quiet=True)
    assert calls == ["00000000", "00000003", "00000003"]
    other = launch("render", config, run_name="whole", quiet=True)
    names = ("coefficients.parquet", "sheet.png")
    for name in names:
        files = [Store(r["artifacts"]["render"]).read_bytes(name) for r in (result, other)]
        assert files[0] == files[1], name


def test_failed_frames_stop_the_job_and_are_tried_again(inputs, tmp_path, monkeypatch):
    config = _config(inputs, tmp_path, max_frames=3)
    with monkeypatch.context() as patch:
        patch.setattr(RenderFrames, "__call__", lambda self, item: 1 / 0)
        with pytest.raises(NfsError, match="from frame 0: error: ZeroDivisionError"):
            launch("render", config, run_name="f", quiet=True)
    assert launch("render", config, run_name="f", quiet=True)["metrics"]["render/frames"] == 3


def test_speech_drives_the_frames(inputs, tmp_path):
    source = {"kind": "audio2exp", "checkpoint": str(inputs / "audio2exp"), "neutral": "silence"}
    config = _config(inputs, tmp_path, expression=source, pose={"kind": "sway"})
    plan = build_plan(config, load_inputs(config))
    assert plan.expression.shape == (9, 64)
    assert (plan.expression[:, :52] >= 0).all()
    assert (plan.expression[:, :52] <= 1).all()
    assert not torch.equal(plan.cam2world[0], plan.cam2world[5])
    assert len(plan.speech_energy) == 9


def test_no_motion_returns_the_undeformed_image_bit_for_bit(inputs, tmp_path):
    for warp in ("world_locked", "original"):
        renderer = build_renderer(_config(inputs, tmp_path, warp={"kind": warp}))
        camera = renderer.portrait.cam2world.expand(2, 4, 4)
        still = renderer(renderer.face.neutral.expand(2, -1), camera)
        assert torch.equal(still, renderer.undeformed(camera))
        moved = renderer.face.neutral.repeat(2, 1)
        moved[1, renderer.face.model.expression_names.index("jawOpen")] += 0.6
        frames = renderer(moved, camera)
        assert torch.equal(frames[0], still[0])
        assert (frames[1] - still[1]).abs().max() > 1e-3


def test_frames_alone_equal_frames_in_a_batch(inputs, tmp_path):
    renderer = build_renderer(_config(inputs, tmp_path))
    torch.manual_seed(1)
    expression = torch.rand(3, 64) * 0.5
    camera = renderer.portrait.cam2world.expand(3, 4, 4)
    together = renderer(expression, camera)
    alone = torch.cat([renderer(expression[i : i + 1], camera[:1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


def test_depth_is_taken_from_the_generator(inputs, tmp_path):
    config = _config(inputs, tmp_path)
    face = build_renderer(config).face
    raw = load_inputs(config).face
    camera = face.cam2world[None]
    calibrated, plain = (world_to_plane(f.reference[None], camera) for f in (face, raw))
    torch.testing.assert_close(calibrated[0], plain[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(calibrated[1], plain[1] * face.depth_scale)
    assert face.depth_scale != 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speech": "nowhere.wav"}, "nowhere.wav: no such file; set speech="),
        ({"identity": "nowhere"}, "nowhere: no manifest.json"),
        ({"expression": {"kind": "fits", "fits": "nowhere"}}, "nowhere: no manifest.json"),
        ({"expression": {"kind": "audio2exp", "checkpoint": "nowhere"}}, "nowhere: no model.json"),
    ],
)
def test_missing_inputs_are_named(inputs, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        launch("render", _config(inputs, tmp_path, **changes), run_name="x", quiet=True)


def test_a_speech_without_sound_is_refused(inputs, tmp_path):
    text = tmp_path / "speech.txt"
    text.write_text("hello")
    with pytest.raises(InputError, match=r"speech\.txt"):
        load_inputs(_config(inputs, tmp_path, speech=str(text)))


def test_another_face_model_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("nfs.talker.builders.load_model", lambda _: _other_model())
    with pytest.raises(ArtifactError, match="not interchangeable"):
        load_inputs(_config(inputs, tmp_path))


def _other_model():
    model = load_model()
    model.checksum = "0" * 64
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_size_px": 47}, "must be even"),
        ({"smoothing_window": 4}, "must be odd"),
        ({"warp": {"kind": "world_locked", "ramp_start": 0.2}}, "must exceed ramp_start"),
        (
            {"expression": {"kind": "audio2exp", "checkpoint": "x"}, "speech": None},
            "speech is required",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(inputs, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        _config(inputs, tmp_path, **changes)


def _frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


ORBIT = {
    "expression": {"kind": "still"},
    "pose": {"kind": "orbit", "yaw_deg": 20, "period_s": 0.32},
    "speech": None,
}


def test_an_orbit_of_an_identity_shows_faces_and_depths(inputs, tmp_path):
    result = launch("render", _config(inputs, tmp_path, **ORBIT), quiet=True)
    uri = result["artifacts"]["render"]
    assert read_manifest(uri, kind="render").counts == {"frames": 8}
    assert verify(uri) == []
    assert Store(uri).exists("sheet.png")
    faces, depths = _frames(f"{uri}/video.mp4"), _frames(f"{uri}/depth.mp4")
    assert len(faces) == len(depths) == 8
    assert faces[0].shape == depths[0].shape == (48, 48, 3)
    assert np.abs(faces[2].astype(int) - faces[6]).mean() > 0.5  # the two ends of the yaw
    assert np.abs(depths[0].astype(int) - depths[0][..., :1]).max() < 12  # grey
    assert Store(result["directory"] + "/work").list(recursive=True) == []


def test_an_orbit_of_a_checkpoint_shows_several_faces(inputs, tmp_path):
    generator = f"{inputs}/identity/generator"
    changes = {**ORBIT, "identity": generator, "subjects": 3, "output_size_px": None}
    result = launch("render", _config(inputs, tmp_path, **changes), quiet=True)
    frames = _frames(result["artifacts"]["render"] + "/video.mp4")
    assert frames[0].shape == (32, 96, 3)
    first, second = frames[0][:, :32].astype(int), frames[0][:, 32:64].astype(int)
    assert np.abs(first - second).mean() > 0.5


def test_an_orbit_follows_the_weights_and_their_growth_stage(inputs, tmp_path):
    torch.manual_seed(1)
    first, second = (Generator(SPEC) for _ in range(2))
    marks, folder = [], tmp_path / "checkpoint"
    config = _config(inputs, tmp_path, **{**ORBIT, "identity": str(folder)})
    for generator, alpha in ((first, 1.0), (first, 0.5), (second, 0.5), (second, 0.5)):
        export_generator(folder, generator, ema=generator, alpha=alpha)
        marks.append(orbit.mark(config))
    assert marks[2] == marks[3]
    assert len(set(marks)) == 3
    subjects = orbit.load_subjects(config, "cpu")
    found = subjects.render(subjects.cam2world).image
    options = RenderOptions(alpha=0.5)
    ws, code = subjects.ws, subjects.background_code
    cameras = subjects.cam2world.expand(len(ws), 4, 4)
    with torch.no_grad():
        middle = second.eval().synthesis(ws, cameras, background_code=code, options=options).image
        full = second.synthesis(ws, cameras, background_code=code).image
    assert torch.equal(found, middle)
    assert found.shape != full.shape or not torch.equal(found, full)


def test_circling_cameras_keep_roll_distance_and_target():
    rotation = torch.tensor([[0.05, -0.1, 0.2]])
    fit = Coefficients.zeros(1)
    fit.rotation[:] = rotation
    camera = face_rotation_to_cam2world(fit.rotation_matrix)[0]
    phase = torch.linspace(0, 2 * torch.pi, 9)
    cameras = circle_cameras(camera, phase, yaw_rad=0.4, pitch_rad=0.0)
    torch.testing.assert_close(cameras[0], camera)
    torch.testing.assert_close(cameras[8], camera, atol=1e-5, rtol=0)
    cameras = circle_cameras(camera, phase, yaw_rad=0.4, pitch_rad=0.1)
    torch.testing.assert_close(cameras[:, :3, 3].norm(dim=1), torch.ones(9))
    plane, depth = world_to_plane(torch.zeros(9, 1, 3), cameras)
    torch.testing.assert_close(plane, torch.full_like(plane, 0.5))
    torch.testing.assert_close(depth, torch.ones_like(depth))
    tilted = cameras[[0, 4], :3, 3] @ camera[:3, 1]  # up and down by the half axis
    torch.testing.assert_close(tilted.abs(), torch.full((2,), np.sin(0.1), dtype=torch.float32))
    assert float(tilted[0] * tilted[1]) < 0


def test_a_still_face_needs_an_orbit_and_no_speech(inputs, tmp_path):
    with pytest.raises(ConfigError, match="needs pose"):
        _config(inputs, tmp_path, **{**ORBIT, "pose": {"kind": "fixed"}})
    with pytest.raises(ConfigError, match="speech has no effect"):
        _config(inputs, tmp_path, **{**ORBIT, "speech": "x.wav"})


def test_a_speaking_head_can_be_circled(inputs, tmp_path):
    config = _config(inputs, tmp_path, pose={"kind": "orbit", "period_s": 0.36})
    plan = build_plan(config, load_inputs(config))
    assert plan.cam2world.shape == (9, 4, 4)
    assert not torch.allclose(plan.cam2world[2], plan.cam2world[6], atol=0.1)
