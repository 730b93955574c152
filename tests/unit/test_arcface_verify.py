"""The verification job: pairs and templates, and that its numbers do not depend on the ranks."""

import json

import numpy as np
import pytest
import torch

from jobs._launch import run_command
from nfs.arcface.pair_files import write_pairs
from nfs.arcface.templates import (
    embed_templates,
    read_templates,
    score_templates,
    tpr_at_fprs,
)
from nfs.arcface.verification import area_under_roc, to_model_input
from nfs.config.verify_arcface import VerifyArcfaceConfig
from nfs.errors import ConfigError, InputError
from nfs.media.images import encode_jpeg
from tests.unit.test_arcface_use import write_backbone

SCHEMA = "nfs.config.verify_arcface:VerifyArcfaceConfig"
POINTS = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366]]
POINTS += [[41.5493, 92.3655], [70.7299, 92.2041]]
# image, template, media: template 7 has two media, one of them with two images.
ROWS = [("a.jpg", 7, 1), ("b.jpg", 7, 1), ("c.jpg", 9, 5), ("d.jpg", 7, 2), ("e.jpg", 12, 8)]


def write_protocol(root):
    rng = np.random.default_rng(0)
    (root / "meta").mkdir(parents=True)
    (root / "loose_crop").mkdir()
    faces, scored = [], []
    for number, (name, template, media) in enumerate(ROWS):
        pixels = rng.integers(0, 256, (120, 130, 3), dtype=np.uint8)
        (root / "loose_crop" / name).write_bytes(encode_jpeg(pixels))
        points = np.asarray(POINTS) + 3  # the face lies 3 px to the right and down
        faces.append(f"{name} {template} {media}\n")
        numbers = " ".join(f"{v:.4f}" for v in points.ravel())
        scored.append(f"{name} {numbers} {0.5 + number / 10}\n")
    meta = root / "meta"
    (meta / "ijbc_face_tid_mid.txt").write_text("".join(faces))
    (meta / "ijbc_name_5pts_score.txt").write_text("".join(scored))
    (meta / "ijbc_template_pair_label.txt").write_text("7 9 1\n9 12 0\n7 12 0\n")
    return root


def flat(images):
    """An embedding that is easy to compute by hand: the four quarters' means of each channel."""
    return torch.nn.functional.avg_pool2d(images, 56).flatten(1)


def test_templates_weigh_media_and_scores(tmp_path):
    from PIL import Image

    templates = read_templates(write_protocol(tmp_path))
    assert templates.ids.tolist() == [7, 9, 12]
    rows = embed_templates(flat, templates, range(3), batch_size=2)

    def embedded(name, score):
        pixels = np.asarray(Image.open(tmp_path / "loose_crop" / name))[3:115, 3:115]
        image = to_model_input(torch.from_numpy(pixels.copy())[None])
        return score * (flat(image) + flat(image.flip(3)))[0].double().numpy()

    seven = (embedded("a.jpg", 0.5) + embedded("b.jpg", 0.6)) / 2 + embedded("d.jpg", 0.8)
    np.testing.assert_allclose(rows[0], seven / np.linalg.norm(seven), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    parts = [embed_templates(flat, templates, range(i, i + 1)) for i in range(3)]
    np.testing.assert_allclose(np.concatenate(parts), rows, atol=1e-6)
    scores = score_templates(rows, templates.pairs)
    np.testing.assert_allclose(scores, [rows[0] @ rows[1], rows[1] @ rows[2], rows[0] @ rows[2]])


def test_rate_at_the_nearest_point_of_the_roc():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    same = np.array([True, True, False, True, False, False])
    rates = tpr_at_fprs(scores, same)
    # Points (fpr, tpr): (0, 1/3), (0, 2/3), (1/3, 2/3), (1/3, 1), ..; 0.1 is nearest to 0.
    assert rates[1e-1] == rates[1e-6] == pytest.approx(2 / 3)
    assert area_under_roc(-scores, same) == pytest.approx(8 / 9)
    with pytest.raises(InputError, match="one kind"):
        tpr_at_fprs(scores, np.ones(6, bool))


def test_files_of_a_protocol_belong_together(tmp_path):
    root = write_protocol(tmp_path)
    with pytest.raises(InputError, match=r"ijbb_face_tid_mid\.txt is missing"):
        read_templates(root, "ijbb")
    pairs = root / "meta" / "ijbc_template_pair_label.txt"
    pairs.write_text("7 8 1\n")
    with pytest.raises(InputError, match=r"templates without images, e\.g\. 8"):
        read_templates(root)
    faces = root / "meta" / "ijbc_face_tid_mid.txt"
    faces.write_text(faces.read_text().replace("c.jpg", "x.jpg"))
    with pytest.raises(InputError, match="do not list the same images"):
        read_templates(root)
    faces.write_text("a.jpg 7\n")
    with pytest.raises(InputError, match="line 1 has 2 columns, need 3"):
        read_templates(root)


def test_job_measures_pairs_and_templates_and_the_untrained_network(tmp_path):
    checkpoint = write_backbone(tmp_path / "checkpoint", "mbf")
    rng = np.random.default_rng(0)
    images = [encode_jpeg(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)) for _ in range(24)]
    write_pairs(tmp_path / "toy.bin", images, [True, False] * 6)
    root = write_protocol(tmp_path / "ijbc")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"checkpoint: {checkpoint}\nsets: [{tmp_path}/toy.bin]\nuntrained: true\n"
        f"templates: {{root: {root}}}\nstorage: {tmp_path}/runs\nbatch_size: 5\n"
        "launch: {kind: local}\ntracking: {kind: jsonl}\n"
    )
    arguments = [str(config), "--run-name", "v"]
    assert run_command("verify_arcface", SCHEMA, arguments) == 0
    result = json.loads((tmp_path / "runs" / "v" / "result.json").read_text())
    metrics = result["metrics"]
    # The checkpoint was written untrained, with another seed than the job's.
    assert 0 <= metrics["val/toy_accuracy"] <= 1
    assert metrics["val/toy_embedding_norm"] != metrics["untrained/toy_embedding_norm"]
    assert metrics["val/ijbc_tpr_at_fpr_1e-01"] in (0.0, 1.0)
    pictures = {p.stem for p in (tmp_path / "runs" / "v").rglob("*.png")}
    assert {"roc_toy", "roc_toy_untrained", "roc_ijbc"} <= {p.split("-")[0] for p in pictures}


def test_nothing_to_verify_is_an_error():
    with pytest.raises(ConfigError, match="nothing to verify"):
        VerifyArcfaceConfig.from_tree({"checkpoint": "c"}, source="test")
