import numpy as np
import pytest
import torch
from PIL import Image

from nfs.errors import ClipError
from nfs.media.images import (
    apply_affine,
    decode_jpeg,
    encode_jpeg,
    encode_png,
    image_grid,
    invert_affine,
    read_photo,
    to_float,
    to_uint8,
    warp_affine,
)


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 2, y * 2, (x + y)], axis=-1).astype(np.uint8)


def test_ranges_round_trip_every_level():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    model = to_float(levels)
    assert model.shape == (1, 3, 16, 16)
    assert model.min() == -1.0
    assert model.max() == 1.0
    assert np.array_equal(to_uint8(model), levels)
    assert to_uint8(torch.full((1, 3, 1, 1), 7.0)).max() == 255


def test_to_float_refuses_float_input():
    with pytest.raises(ValueError, match="expected uint8"):
        to_float(np.zeros((1, 4, 4, 3)))


def test_jpeg_and_png_round_trip():
    image = gradient(40, 60)
    assert np.array_equal(decode_jpeg(encode_png(image)), image)
    assert np.abs(decode_jpeg(encode_jpeg(image)).astype(int) - image).mean() < 1.5
    with pytest.raises(ValueError, match="not a readable picture"):
        decode_jpeg(encode_jpeg(image)[:100])


def test_photos_of_every_kind_become_rgb(tmp_path):
    grey = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    rgba = np.dstack([gradient(8, 8), np.zeros((8, 8), np.uint8)])
    rgba[4:, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(gradient(8, 8)).save(tmp_path / "photo.webp", lossless=True)
    for name in ("grey.png", "deep.png"):
        assert np.array_equal(read_photo(tmp_path / name), grey[:, :, None].repeat(3, axis=2))
    laid = read_photo(tmp_path / "alpha.png")
    assert np.all(laid[:4] == 255)
    assert np.array_equal(laid[4:], gradient(8, 8)[4:])
    assert np.array_equal(read_photo(tmp_path / "photo.webp"), gradient(8, 8))


def test_photo_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to stand upright
    Image.fromarray(gradient(8, 16)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_photo(tmp_path / "turned.png"), np.rot90(gradient(8, 16), -1))


def test_broken_photo_is_a_decode_error(tmp_path):
    whole = encode_png(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    for name, data in (("torn.png", whole[:200]), ("text.jpg", b"no picture"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ClipError, match=name) as caught:
            read_photo(tmp_path / name)
        assert caught.value.status == "decode_error"


def test_grid_places_images_row_by_row():
    tiles = [np.full((4, 6, 3), 10 * index, np.uint8) for index in range(5)]
    sheet = image_grid(tiles, columns=3, gap_px=1)
    assert sheet.shape == (9, 20, 3)
    assert sheet[0, 0, 0] == 0
    assert sheet[0, 7, 0] == 10
    assert sheet[5, 0, 0] == 30
    assert sheet[8, 19, 0] == 255
    assert sheet[4, 0, 0] == 255  # the gap


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (8, (2, 4)), (10, (3, 4))]
)
def test_grid_is_about_square_with_few_empty_places(count, shape):
    tiles = [np.zeros((2, 2, 3), np.uint8)] * count
    assert image_grid(tiles, gap_px=0).shape[:2] == (2 * shape[0], 2 * shape[1])
    assert image_grid(tiles, columns=12, gap_px=0).shape[1] == 2 * min(count, 12)


def test_grid_of_wide_images_has_fewer_columns():
    assert image_grid([np.zeros((2, 8, 3), np.uint8)] * 8, gap_px=0).shape[:2] == (8, 16)


def test_affine_inverse_and_application_agree():
    rng = np.random.default_rng(0)
    matrices, points = rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 7, 2))
    back = apply_affine(invert_affine(matrices), apply_affine(matrices, points))
    assert np.allclose(back, points)


def test_warp_identity_and_shift_keep_pixels():
    image = gradient(50, 60)
    identity = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert np.array_equal(warp_affine(image, identity, (50, 60)), image)
    shifted = warp_affine(image, identity - [[0, 0, 7], [0, 0, 5]], 20)
    assert np.array_equal(shifted, image[5:25, 7:27])


def test_warp_follows_the_continuous_pixel_convention():
    # A linear picture f(x, y) = 2 x + const at pixel centres stays linear under any map.
    image = gradient(120, 120)
    angle, scale = 0.3, 0.8
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([linear, np.array([32.0, 32.0]) - linear @ [60.0, 60.0]])
    warped = warp_affine(image, matrix, 64)
    y, x = np.mgrid[:64, :64] + 0.5
    source = apply_affine(invert_affine(matrix), np.stack([x, y], -1).reshape(-1, 2))
    expected = (source[:, 0] - 0.5).reshape(64, 64) * 2
    difference = (warped[..., 0] - expected)[8:-8, 8:-8]
    assert np.abs(difference).max() < 2.5  # rounding, twice
    assert abs(difference.mean() + 0.5) < 0.3  # Pillow truncates; half a pixel would be 1


def test_reduction_is_antialiased_and_outside_is_mirrored():
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, ::2] = 255
    reduced = warp_affine(stripes, np.array([[0.2, 0, 0], [0, 0.2, 0]]), 40)
    assert np.abs(reduced[10:-10, 10:-10].astype(int) - 127).max() < 12
    raw = warp_affine(stripes, np.array([[0.2, 0, 0], [0, 0.2, 0]]), 40, antialias=False)
    assert np.abs(raw[10:-10, 10:-10].astype(int) - 127).max() > 100
    image = gradient(20, 20)
    padded = warp_affine(image, np.array([[1.0, 0, 5], [0, 1, 0]]), (20, 25))
    assert np.array_equal(padded[:, :5], image[:, 4::-1])
