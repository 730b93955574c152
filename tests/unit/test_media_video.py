from pathlib import Path

import av
import numpy as np
import pytest

from nfs.errors import ClipError
from nfs.media import VideoWriter, probe, read_audio, read_frames, video
from tests.media import huge_video

SIZE = (64, 96)
COLOURS = np.array([[250, 20, 20], [20, 240, 30], [30, 40, 250], [200, 180, 20]], np.uint8)


def frame_with(level: int) -> np.ndarray:
    image = np.zeros((*SIZE, 3), np.uint8)
    for index, colour in enumerate(COLOURS):
        image[:, index * 24 : (index + 1) * 24] = colour
    image[:32] = level
    return image


def level_of(image: np.ndarray) -> int:
    return round(float(image[4:28, 4:-4].mean()))


def tone(num_samples: int, rate: int = 16000) -> np.ndarray:
    time_s = np.arange(num_samples) / rate
    return 0.5 * np.sin(2 * np.pi * 300 * time_s) * (time_s % 0.4 < 0.1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """50 frames at 25 fps, brightness 5 i, with 2.0 s of tone bursts."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with VideoWriter(path, 25, SIZE, audio=(tone(32000), 16000)) as writer:
        for index in range(50):
            writer.write(frame_with(5 * index))
    return path


def test_round_trip_of_frames_and_sound(clip):
    frames = list(read_frames(clip))
    assert len(frames) == 50
    assert np.allclose([time_s for time_s, _ in frames], np.arange(50) / 25)
    assert np.abs([level_of(image) - 5 * i for i, (_, image) in enumerate(frames)]).max() <= 3
    sound = read_audio(clip)
    assert (len(sound.samples), sound.start_s) == (32000, 0.0)
    lags = np.correlate(sound.samples[:8000], tone(8000), "full")
    assert lags.argmax() == 7999  # lag 0
    assert np.corrcoef(sound.samples, tone(32000))[0, 1] > 0.98


def test_colours_survive(clip):
    _, image = next(read_frames(clip))
    found = image[40:60, 12::24].mean(axis=0)
    assert np.abs(found - COLOURS).max() < 6


def test_probe_tells_what_is_there(clip):
    info = probe(clip)
    assert (info.width_px, info.height_px, info.fps) == (96, 64, 25.0)
    assert info.has_audio
    assert info.duration_s == pytest.approx(2.0)


@pytest.mark.parametrize("side", [9_000, 40_000])
def test_declared_size_is_checked_before_a_frame_is_decoded(tmp_path, monkeypatch, side):
    path = huge_video(tmp_path / "huge.avi", side)
    monkeypatch.setattr(video, "_decoded", lambda *_: pytest.fail("a frame was decoded"))
    wanted = f"huge.avi: declares frames of {side} x {side} pixels, .* limit of 67108864"
    for read in (probe, lambda *a, **k: list(read_frames(*a, **k))):
        with pytest.raises(ClipError, match=wanted) as raised:
            read(path, max_pixels=8192**2)
        assert raised.value.status == "decode_error"
    with path.open("rb") as file, pytest.raises(ClipError, match=wanted):
        probe(path, file=file, max_pixels=8192**2)


def test_frames_at_the_limit_are_read(clip):
    height, width = SIZE
    assert probe(clip, max_pixels=height * width).width_px == width
    assert len(list(read_frames(clip, max_pixels=height * width))) == 50
    with pytest.raises(ClipError, match="96 x 64 pixels, 6144 in all, more than the limit of 6143"):
        probe(clip, max_pixels=height * width - 1)


def test_a_video_is_probed_through_an_opened_file(clip):
    with clip.open("rb") as file:
        assert probe("s3://far/away.mp4", file=file) == probe(clip)


@pytest.mark.parametrize(("fps", "count"), [(10, 20), (25, 50), (12, 24), (50, 100)])
def test_resampling_takes_the_nearest_frame(clip, fps, count):
    frames = list(read_frames(clip, fps=fps))
    assert len(frames) == count
    for index, (time_s, image) in enumerate(frames):
        assert time_s == pytest.approx(index / fps)
        assert abs(level_of(image) / 5 - time_s * 25) <= 1.1


def test_repeated_frames_are_the_same_array(clip):
    images = [image for _, image in read_frames(clip, fps=50)]
    assert images[2] is images[1]
    assert images[3] is not images[2]


def test_a_part_equals_the_whole(clip):
    whole = [level_of(image) for _, image in read_frames(clip, fps=25)]
    part = list(read_frames(clip, fps=25, start_s=1.2, end_s=1.6))
    assert [level_of(image) for _, image in part] == whole[30:40]
    sound = read_audio(clip, start_s=1.2, end_s=1.6).cut(1.2, 6400)
    assert np.allclose(sound, read_audio(clip).samples[19200:25600], atol=0.02)


def test_cut_fills_with_silence(clip):
    sound = read_audio(clip)
    assert np.array_equal(sound.cut(-0.5, 8000), np.zeros(8000, np.float32))
    assert len(sound.cut(1.9, 8000)) == 8000
    assert not sound.cut(1.9, 8000)[1600:].any()


def test_rotation_is_undone(tmp_path):
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.set_display_rotation(90)
        for _ in range(3):
            picture = av.VideoFrame.from_ndarray(frame_with(0), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    info = probe(path)
    assert (info.width_px, info.height_px) == (64, 96)
    _, image = next(read_frames(path))
    assert image.shape == (96, 64, 3)
    upright = np.rot90(frame_with(0), info.rotation_deg // 90)
    assert np.abs(image.astype(int) - upright).mean() < 12


def test_truncated_file_names_where_it_broke(clip, tmp_path):
    torn = tmp_path / "torn.mp4"
    data = clip.read_bytes()
    torn.write_bytes(data[: int(len(data) * 0.6)])
    with pytest.raises(ClipError, match=r"torn\.mp4: broke off .*at \d\.\d+ s") as caught:
        list(read_frames(torn))
    assert caught.value.status == "decode_error"


def test_missing_end_is_noticed_without_a_decoder_error(clip, tmp_path, monkeypatch):
    import nfs.media.video as video

    decoded = video._decoded

    def early(*arguments):
        for index, frame in enumerate(decoded(*arguments)):
            if index == 20:
                return
            yield frame

    monkeypatch.setattr(video, "_decoded", early)
    with pytest.raises(ClipError, match="truncated: its header declares 2"):
        list(read_frames(clip))


@pytest.mark.parametrize("content", [b"", b"plain text, no video\n" * 50])
def test_no_video_file_is_a_decode_error(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    for read in (probe, lambda p: list(read_frames(p)), read_audio):
        with pytest.raises(ClipError, match=r"bad\.mp4") as caught:
            read(path)
        assert caught.value.status == "decode_error"


def test_sound_only_and_picture_only(tmp_path, clip):
    wav = tmp_path / "sound.wav"
    with av.open(str(wav), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=44100, layout="stereo")
        left = (tone(44100, 44100) * 32767).astype(np.int16)
        both = np.stack([left, np.zeros_like(left)], 1).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(both, format="s16", layout="stereo")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ClipError, match="no video stream") as caught:
        probe(wav)
    assert caught.value.status == "no_video"
    sound = read_audio(wav)
    assert abs(len(sound.samples) - 16000) <= 1
    assert np.abs(sound.samples).max() == pytest.approx(0.25, abs=0.02)  # mean of both channels
    silent = tmp_path / "silent.mp4"
    with VideoWriter(silent, 25, SIZE) as writer:
        writer.write(frame_with(0))
    assert not probe(silent).has_audio
    with pytest.raises(ClipError) as caught:
        read_audio(silent)
    assert caught.value.status == "no_audio"


def test_writer_leaves_nothing_behind_after_an_error(tmp_path):
    target = tmp_path / "out" / "clip.mp4"
    wrong = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(ValueError, match="frame 1"), VideoWriter(target, 25, SIZE) as writer:
        any(writer.write(frame) for frame in (frame_with(0), wrong))
    assert list(target.parent.iterdir()) == []
    with pytest.raises(ValueError, match="no frame"), VideoWriter(target, 25, SIZE):
        pass
    assert list(target.parent.iterdir()) == []


def test_writer_refuses_wrong_frames_and_odd_sizes(tmp_path):
    with pytest.raises(ValueError, match="must be even"):
        VideoWriter(tmp_path / "odd.mp4", 25, (63, 96))
    with (
        pytest.raises(ValueError, match="frame 0 is uint8"),
        VideoWriter(tmp_path / "size.mp4", 25, SIZE) as writer,
    ):
        writer.write(np.zeros((32, 32, 3), np.uint8))


def test_all_samples_are_written_past_the_last_frame(tmp_path):
    path = tmp_path / "long.mp4"
    with VideoWriter(path, 25, SIZE, audio=(tone(20001), 16000)) as writer:
        for _ in range(5):
            writer.write(frame_with(0))
    assert len(read_audio(path).samples) == 20001


def test_a_photo_is_a_video_of_one_frame(tmp_path):
    from PIL import Image

    Image.fromarray(frame_with(77)).save(tmp_path / "photo.png")
    frames = list(read_frames(tmp_path / "photo.png", fps=25))
    assert len(frames) == 1
    assert np.array_equal(frames[0][1], frame_with(77))
    assert probe(tmp_path / "photo.png").is_photo
