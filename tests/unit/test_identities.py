"""Identities by clusters: the algorithm, and the job with kills and new clips."""

import itertools

import numpy as np
import pytest
import torch

import jobs._identities as identities
import nfs.face.clip as clip_module
import nfs.perceptual.dlib_face as dlib_face
from jobs._launch import run_command
from nfs.artifacts import Store, read_manifest, verify
from nfs.artifacts.identities import cluster_identities
from nfs.artifacts.tables import read_table
from nfs.config.preprocess import PreprocessConfig
from nfs.errors import ConfigError
from nfs.face.sources import split_of
from nfs.media import VideoWriter
from tests.unit.face_fakes import SquareDetector, SquareLandmarks, picture

SIZE = (160, 240)


def vectors(values):
    return {name: np.array([value, 0.0], np.float32) for name, value in values.items()}


def partition(of_clip):
    return {frozenset(c for c in of_clip if of_clip[c] == who) for who in of_clip.values()}


def test_components_of_close_pairs():
    found = cluster_identities(vectors({"a": 0, "b": 0.4, "c": 0.8, "d": 2}), {}, 0.5)
    assert partition(found.of_clip) == {frozenset("abc"), frozenset("d")}
    assert found.bridges == []


def test_clusters_equal_those_of_all_pairs_in_any_block_size(monkeypatch, rng):
    points = rng.normal(0, 1, (60, 3)).astype(np.float32)
    embeddings = {f"{i:02d}": p for i, p in enumerate(points)}
    wanted = cluster_identities(embeddings, {}, 0.6).of_clip
    people = partition(wanted)
    assert 3 < len(people) < 50
    for (a, x), (b, y) in itertools.combinations(embeddings.items(), 2):
        if np.linalg.norm(x - y) < 0.6:
            assert wanted[a] == wanted[b]
    for person in people:  # connected: no cluster falls into two parts that are far apart
        members = sorted(person)
        part = {members[0]}
        while grown := {
            c for c in members if any(np.linalg.norm(embeddings[c] - embeddings[p]) < 0.6
                                      for p in part)
        } - part:  # fmt: skip
            part |= grown
        assert part == person
    monkeypatch.setattr("nfs.artifacts.identities._BLOCK", 7)
    shuffled = dict(reversed(embeddings.items()))
    assert cluster_identities(shuffled, {}, 0.6).of_clip == wanted


def test_known_clips_keep_their_identity():
    first = cluster_identities(vectors({"b": 0, "c": 1}), {}, 0.5).of_clip
    more = vectors({"a": 0.2, "b": 0, "c": 1, "d": 1.9, "e": 2.1})
    found = cluster_identities(more, first, 0.5)
    assert {clip: found.of_clip[clip] for clip in first} == first
    assert found.of_clip["a"] == first["b"]
    assert found.of_clip["d"] == found.of_clip["e"] not in first.values()
    assert cluster_identities(more, found.of_clip, 0.5) == found


def test_a_bridge_goes_to_the_nearest_and_is_told():
    first = cluster_identities(vectors({"a": 0, "b": 0.8}), {}, 0.5).of_clip
    found = cluster_identities(vectors({"a": 0, "b": 0.8, "m": 0.45}), first, 0.5)
    assert found.of_clip["m"] == first["b"]
    assert found.bridges == ["m"]


class MeanColour:
    """Embeds a picture by its mean; brightness stands for a person."""

    def embed(self, images):
        return images.mean(dim=(2, 3))


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(clip_module, "build_detector", lambda *_: SquareDetector())
    monkeypatch.setattr(clip_module, "build_landmarks", lambda *_: SquareLandmarks())
    monkeypatch.setattr(dlib_face.DlibDistance, "load", MeanColour)


def write_clip(path, grey, shift=0):
    with VideoWriter(path, 25, SIZE) as writer:
        for index in range(4):
            writer.write(picture(SIZE, [(60 + index + shift, 80, 40)], grey=grey))


def job(folder, inputs, *overrides):
    config = folder / "c.yaml"
    config.write_text("launch: {kind: local}\ntracking: {kind: jsonl}\nclip: {crop_size_px: 64}\n")
    arguments = [
        str(config), f"inputs=[{inputs}]", "identity_from=clusters", "identity_threshold=0.1",
        "val_fraction=0.5", f"storage={folder}/runs", "--run-name", "r", *overrides,
    ]  # fmt: skip
    assert run_command("preprocess", "nfs.config.preprocess:PreprocessConfig", arguments) == 0
    return str(folder / "runs" / "r" / "clips")


def people(uri):
    rows = read_table(uri, "clips").to_pylist()
    return {row["clip_id"][:-9]: (row["identity_id"], row["split"]) for row in rows}


def test_the_job_splits_by_faces(tmp_path, fakes):
    media = tmp_path / "media"
    for name, grey in (("x1", 10), ("x2", 12), ("y", 120)):
        write_clip(media / f"{name}.mp4", grey, shift=grey % 7)
    uri = job(tmp_path, media)
    first = people(uri)
    assert first["x1"] == first["x2"] != first["y"]
    assert all(split == split_of(who, 0.5) for who, split in first.values())
    assert read_manifest(uri).counts["identities"] == 2
    write_clip(media / "a.mp4", 122)
    write_clip(media / "z.mp4", 60)
    second = people(job(tmp_path, media, "shard_mb=64"))
    assert {name: second[name] for name in first} == first
    assert second["a"] == first["y"]
    assert len(set(second.values())) == 3
    assert people(job(tmp_path, media)) == second
    assert verify(uri) == []


class Killed(BaseException):
    pass


def test_killed_at_every_write_the_end_is_the_same(tmp_path, fakes):
    media = tmp_path / "media"
    for index, grey in enumerate((10, 12, 120, 60, 61)):
        write_clip(media / f"{index}.mp4", grey, shift=index)
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    wanted = people(job(tmp_path / "whole", media))
    real = Store.write_bytes
    in_clusters = []
    for step in range(4, 26, 3):
        left = [step]

        def dying(self, path, data, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(self, path, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "write_bytes", dying)
            try:
                job(tmp_path / "cut", media)
            except Killed:
                clips = Store(tmp_path / "cut" / "runs" / "r" / "clips")
                in_clusters.append(clips.exists(identities.IDENTITIES_FILE))
    assert people(job(tmp_path / "cut", media)) == wanted
    assert len(in_clusters) > 2


def test_other_alignments_are_refused():
    with pytest.raises(ConfigError, match="aligned as FFHQ"):
        PreprocessConfig.from_tree(
            {"inputs": ["x"], "identity_from": "clusters", "clip": {"align": "arcface"}}
        )


def test_embeddings_are_of_usable_frames(tmp_path, fakes):
    write_clip(tmp_path / "media" / "x.mp4", 100)
    uri = job(tmp_path, tmp_path / "media")
    row = read_table(uri, "faces").to_pylist()[0]
    assert row["num_frames"] == 4
    assert len(row["embedding"]) == 3
    assert torch.isfinite(torch.tensor(row["embedding"])).all()
