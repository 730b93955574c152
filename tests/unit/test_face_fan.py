import numpy as np
import torch

from nfs.face.fan import FanLandmarks, decode_heat_maps
from nfs.face.protocols import frame_from_landmarks
from tests.unit.face_fakes import face_points, picture

SIZE = (240, 320)


class BrightestSpot:
    """Stands for FAN: all 68 maps peak where the crop is brightest; remembers batch sizes."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, crops):
        assert crops.shape[1:] == (3, 256, 256)
        assert 0 <= crops.min() <= crops.max() <= 1
        self.batches.append(len(crops))
        small = torch.nn.functional.avg_pool2d(crops[:, :1], 4)
        return [small.new_zeros(1), small.expand(-1, 68, -1, -1)]


def test_points_come_back_to_the_picture_in_batches():
    net = BrightestSpot()
    fan = FanLandmarks(net=net)
    spots = [(100.0 + 7 * n, 90.0 + 3 * n) for n in range(6)]
    images = [picture(SIZE, [(round(x), round(y), 5)]) for x, y in spots]
    boxes = np.array([(x - 40, y - 50, x + 50, y + 60) for x, y in spots])
    points, scores = fan.landmarks_of_frames(images, boxes)
    assert net.batches == [4, 2]
    assert points.shape == (6, 68, 2)
    assert np.abs(points - np.array(spots)[:, None]).max() < 2.0
    assert scores.min() > 0.9
    one, _ = fan.landmarks(images[2], boxes[2:3])
    assert np.allclose(one[0], points[2])
    around = face_points(spots[0], 60)
    followed, score = fan.follow(images[0], around)
    assert np.abs(followed - spots[0]).max() < 2.0
    assert score > 0.9
    assert fan.landmarks(images[0], np.zeros((0, 4)))[0].shape == (0, 68, 2)
    assert len(frame_from_landmarks(around).box()) == 4


def test_decoding_moves_a_quarter_pixel_towards_the_larger_neighbour():
    maps = np.zeros((1, 3, 64, 64))
    maps[0, 0, 20, 30], maps[0, 0, 20, 31], maps[0, 0, 19, 30] = 1.0, 0.6, 0.2
    maps[0, 1, 40, 10] = 0.7
    maps[0, 2, 0, 5], maps[0, 2, 0, 6] = 0.5, 0.4
    places, peaks = decode_heat_maps(maps)
    assert places[0].tolist() == [[30.75, 20.25], [10.5, 40.5], [5.5, 0.5]]
    assert peaks[0].tolist() == [1.0, 0.7, 0.5]
