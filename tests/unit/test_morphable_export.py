"""Coefficients as files of other programs, and back."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat
from typer.testing import CliRunner

from nfs.artifacts import read_manifest, verify
from nfs.artifacts.tables import read_table
from nfs.cli import app
from nfs.errors import InputError
from nfs.morphable.arkit import SHAPES, timecode
from nfs.morphable.coefficients import PACKED_SIZES, Coefficients
from nfs.morphable.exchange import (
    ClipCoefficients,
    import_fits,
    read_clip,
    read_fits,
    write_mat,
    write_npz,
)
from nfs.morphable.export import export_fits
from nfs.morphable.loading import load_model
from nfs.morphable.mesh_files import atlas, bake, write_obj
from nfs.morphable.model import MorphableModel


def cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]


@pytest.fixture(scope="module")
def head() -> MorphableModel:
    return load_model()


def clip_of(head: MorphableModel, clip_id: str = "clip-1", frames: int = 3) -> ClipCoefficients:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(frames, sum(PACKED_SIZES.values()), generator=generator)
    coefficients = Coefficients.unpack(packed)
    coefficients = replace(coefficients, expression=coefficients.expression.abs() / 4)
    errors = np.array([1.25, np.nan, 0.1] * frames, np.float32)[:frames]
    return ClipCoefficients(
        clip_id,
        coefficients,
        np.arange(frames, dtype=np.int32) + 2,
        errors,
        errors / 7,
        ("ok", "no_face", "ok")[:frames],
        head.model_id,
        head.checksum,
    )


@pytest.fixture
def fits(head, tmp_path) -> str:
    write_npz(clip_of(head), tmp_path / "one.npz")
    write_mat(clip_of(head, "clip/2", 2), tmp_path / "two.mat")
    output = str(tmp_path / "fits")
    assert import_fits([tmp_path / "one.npz", tmp_path / "two.mat"], output, head) == 2
    return output


@pytest.mark.parametrize("suffix", ["npz", "mat"])
def test_files_come_back_bit_by_bit(head, tmp_path, suffix):
    clip, path = clip_of(head), tmp_path / f"x.{suffix}"
    (write_npz if suffix == "npz" else write_mat)(clip, path)
    again = read_clip(path)
    assert torch.equal(again.coefficients.pack(), clip.coefficients.pack())
    for name in ("frame_index", "nme_percent", "photometric_l1"):
        assert np.array_equal(getattr(again, name), getattr(clip, name), equal_nan=True)
    assert (again.clip_id, again.status) == (clip.clip_id, clip.status)
    assert (again.model, again.model_checksum) == (head.model_id, head.checksum)


def test_an_artifact_comes_back_through_files(head, fits, tmp_path):
    assert verify(fits) == []
    assert read_manifest(fits, kind="fits").extra["model_checksum"] == head.checksum
    first = read_table(fits, "fits", clip_ids=["clip-1"])
    assert len(first) == 3
    for format_ in ("npz", "mat"):
        written, _ = export_fits(fits, tmp_path / format_, format_)
        assert sorted(p.name for p in written) == [f"clip-1.{format_}", f"clip_2.{format_}"]
        copy = str(tmp_path / f"copy-{format_}")
        import_fits(written, copy, head)
        for clip_id in ("clip-1", "clip/2"):
            tables = [read_table(uri, "fits", clip_ids=[clip_id]) for uri in (fits, copy)]
            old, new = (
                next(clip for clip in read_fits(uri, [clip_id])).coefficients.pack()
                for uri in (fits, copy)
            )
            assert torch.equal(old, new)
            assert tables[0]["status"] == tables[1]["status"]


def test_mat_files_have_the_originals_names(head, tmp_path):
    write_mat(clip_of(head), tmp_path / "x.mat")
    raw = loadmat(str(tmp_path / "x.mat"))
    widths = {"id": 80, "exp": 64, "tex": 80, "angle": 3, "gamma": 27, "trans": 3}
    assert {name: raw[name].shape for name in widths} == {k: (3, w) for k, w in widths.items()}


def test_files_of_the_original_programs_are_for_bfm_only(head, tmp_path):
    from scipy.io import savemat

    packed = np.random.default_rng(0).normal(size=(1, 257)).astype(np.float32)
    np.save(tmp_path / "a.npy", packed[0])
    torch.save(torch.from_numpy(packed), tmp_path / "b.pt")
    parts = dict(
        zip(
            ("id", "exp", "tex", "angle", "gamma", "trans"),
            np.split(packed, [80, 144, 224, 227, 254], axis=1),
            strict=True,
        )
    )
    savemat(str(tmp_path / "c.mat"), parts)
    for name in ("a.npy", "b.pt", "c.mat"):
        assert np.array_equal(read_clip(tmp_path / name).coefficients.pack().numpy(), packed)
        with pytest.raises(InputError, match=r"BFM \(unnamed\)"):
            import_fits([tmp_path / name], str(tmp_path / "out"), head)
    bfm = load_model()
    bfm.model_id = "bfm"
    assert import_fits([tmp_path / "a.npy"], str(tmp_path / "bfm"), bfm) == 1


def test_bad_files_are_named(head, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros(256))
    (tmp_path / "torn.npz").write_bytes(b"PK nonsense")
    (tmp_path / "text.csv").write_text("1,2")
    for name in ("short.npy", "torn.npz", "text.csv", "absent.mat"):
        with pytest.raises(InputError, match=name):
            read_clip(tmp_path / name)
    other = replace(clip_of(head), model_checksum="0" * 64)
    write_npz(other, tmp_path / "other.npz")
    with pytest.raises(InputError, match="not of open_head"):
        import_fits([tmp_path / "other.npz"], str(tmp_path / "out"), head)
    write_npz(clip_of(head), tmp_path / "one.npz")
    with pytest.raises(InputError, match="both hold clip"):
        import_fits([tmp_path / "one.npz"] * 2, str(tmp_path / "out"), head)


def test_arkit_columns_carry_the_expressions(head, fits, tmp_path):
    written, remarks = export_fits(fits, tmp_path / "csv", "arkit", clip_ids=["clip-1"], fps=30)
    with written[0].open() as stream:
        rows = list(csv.DictReader(stream))
    clip = clip_of(head)
    assert len(SHAPES) == len(set(SHAPES)) == 52
    assert set(SHAPES) == set(head.expression_names[:52])
    assert len(rows[0]) == 2 + 52 + 9
    assert rows[0]["BlendShapeCount"] == "61"
    for name, column in (("jawOpen", "JawOpen"), ("eyeBlinkLeft", "EyeBlinkLeft")):
        values = [float(row[column]) for row in rows]
        place = head.expression_names.index(name)
        assert values == pytest.approx(clip.coefficients.expression[:, place].tolist(), abs=1e-6)
    yaw = [float(row["HeadYaw"]) for row in rows]
    assert yaw == pytest.approx(clip.coefficients.rotation[:, 1].tolist(), abs=1e-6)
    assert [row["Timecode"] for row in rows] == [f"00:00:00:0{i}.000" for i in range(3)]
    assert "eyeLookUpLeft" in remarks[0]
    assert "tongueOut" in remarks[0]


def test_timecodes():
    assert timecode(0, 25) == "00:00:00:00.000"
    assert timecode(25 * 3661 + 7, 25) == "01:01:01:07.000"
    assert timecode(29, 29.97).startswith("00:00:00:29")


def test_the_texture_shows_each_triangles_colours(head):
    faces, size = head.faces.numpy()[:301], 256
    colours = np.random.default_rng(0).uniform(size=(len(faces), 3, 3))
    uv = atlas(len(faces), size)
    assert uv.min() > 0
    assert uv.max() < size
    texture = bake(colours, uv, size)
    middle = uv.mean(1).astype(int)
    shown = texture[middle[:, 1], middle[:, 0]] / 255
    a, b, c = (uv[:, k] for k in range(3))
    place = middle + 0.5
    area = cross(b - a, c - a)
    second, third = cross(place - a, c - a) / area, cross(b - a, place - a) / area
    weights = np.stack([1 - second - third, second, third], 1)
    assert (weights > 0).all()
    assert np.abs(shown - (weights[..., None] * colours).sum(1)).max() < 0.01


def test_obj_files_hold_the_mesh(head, tmp_path):
    colours = head.albedo(torch.zeros(1, 80))[0]
    obj, mtl, png = write_obj(tmp_path / "x.obj", head.mean_shape, head.faces, colours)
    lines = obj.read_text().splitlines()
    rows = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    assert np.abs(rows[:, :3] - head.mean_shape.numpy()).max() < 1e-5
    assert np.abs(rows[:, 3:] - colours.numpy()).max() < 1e-5
    corners = [line.split()[1:] for line in lines if line.startswith("f ")]
    ids = np.array([[corner.split("/")[0] for corner in face] for face in corners], int)
    assert np.array_equal(ids - 1, head.faces.numpy())
    assert sum(line.startswith("vt ") for line in lines) == 3 * len(head.faces)
    assert f"map_Kd {png.name}" in mtl.read_text()
    assert Image.open(png).size == (1024, 1024)


def test_meshes_of_a_clip(head, fits, tmp_path):
    written, _ = export_fits(fits, tmp_path / "m", "obj", clip_ids=["clip-1"], frames=[3])
    assert [p.name for p in written if p.suffix == ".obj"] == ["clip-1.obj", "clip-1_000003.obj"]
    with pytest.raises(InputError, match="no frame 99"):
        export_fits(fits, tmp_path / "m", "obj", clip_ids=["clip-1"], frames=[99])
    with pytest.raises(InputError, match="no clip 'nobody'"):
        export_fits(fits, tmp_path / "m", "npz", clip_ids=["nobody"])


def test_the_command(fits, tmp_path):
    out = tmp_path / "files"
    result = CliRunner().invoke(app, ["artifact", "export-fits", fits, str(out), "--format", "npz"])
    assert result.exit_code == 0, result.output
    files = [str(path) for path in sorted(out.iterdir())]
    result = CliRunner().invoke(app, ["artifact", "import-fits", str(tmp_path / "again"), *files])
    assert result.exit_code == 0, result.output
    assert "2 clips" in result.output
    result = CliRunner().invoke(app, ["artifact", "export-fits", fits, str(out), "--format", "fbx"])
    assert result.exit_code == 2
