import numpy as np
import pyarrow as pa
import pytest
import torch

from nfs.artifacts import Store, write_manifest
from nfs.artifacts.schemas import FITS
from nfs.audio.audio2exp import Audio2Exp
from nfs.errors import InputError
from nfs.talker.expressions import (
    SpeechDrive,
    add_blinks,
    blink_ratio,
    clamp_bounds,
    correlation,
    from_fits,
    from_speech,
    smooth,
    speech_energy,
)

NAMES = ["eyeBlinkLeft", "eyeBlinkRight", "jawOpen", *(f"axis{i}" for i in range(61))]


def _fits(folder, clips: dict[str, dict[int, float]], bad: dict[str, list[int]] | None = None):
    """Write a fits artifact with constant expressions `value` per frame."""
    store = Store(str(folder))
    for clip, frames in clips.items():
        rows = [
            {
                "clip_id": clip,
                "frame_index": index,
                "identity": [0.0] * 80,
                "expression": [value] * 64,
                "texture": [0.0] * 80,
                "rotation_rad": [0.0] * 3,
                "translation": [0.0] * 3,
                "lighting": [0.0] * 27,
                "nme_percent": 1.0,
                "photometric_l1": 0.0,
                "status": "no_face" if index in (bad or {}).get(clip, []) else "ok",
            }
            for index, value in frames.items()
        ]
        store.write_table(f"fits/{clip}.parquet", pa.Table.from_pylist(rows, schema=FITS))
    write_manifest(str(folder), kind="fits", config={})
    return str(folder)


def _follow(uri, clip=None, **options):
    values = {"fps": 25.0, "source_fps": 25.0, "reference": torch.full((64,), 0.1)} | options
    return from_fits(uri, clip, **values)


def test_fits_motion_is_relative_to_the_calm_frames_and_scaled(tmp_path):
    uri = _fits(tmp_path, {"a": {i: 0.2 + 0.01 * i for i in range(20)}})
    track = _follow(uri, scale=2.0)
    assert track.shape == (20, 64)
    calm = (0.2 + 0.21) / 2
    assert track[10, 5].item() == pytest.approx(0.1 + 2 * (0.3 - calm), abs=1e-5)


def test_fits_short_gaps_are_interpolated_and_long_ones_named(tmp_path):
    frames = {i: 0.1 * i for i in range(20)}
    short = _fits(tmp_path / "short", {"a": frames}, {"a": [4, 5]})
    track = _follow(short)
    whole = _follow(_fits(tmp_path / "whole", {"a": frames}))
    torch.testing.assert_close(track, whole)
    long = _fits(tmp_path / "long", {"a": frames}, {"a": list(range(6, 13))})
    with pytest.raises(InputError, match=r"clip a: frames 6\.\.12 have no fit"):
        _follow(long)


def test_fits_resampling_keeps_the_duration(tmp_path):
    uri = _fits(tmp_path, {"a": {i: float(i) for i in range(60)}})
    track = _follow(uri, source_fps=30.0)
    assert len(track) == 50
    assert (track[1] - track[0])[0].item() == pytest.approx(1.2, abs=1e-4)


def test_fits_clip_must_be_named_when_there_are_several(tmp_path):
    uri = _fits(tmp_path, {"a": {0: 0.0}, "b": {0: 0.0}})
    with pytest.raises(InputError, match=r"expression.clip_id: choose of its 2 clips: a, b"):
        _follow(uri)
    with pytest.raises(InputError, match="'c' is not among"):
        _follow(uri, "c")
    assert _follow(uri, "b").shape == (1, 64)


def test_speech_silence_with_silence_as_neutral_shows_the_portrait():
    torch.manual_seed(0)
    model = Audio2Exp().eval()
    reference = torch.rand(64) * 0.2
    options = {"num_frames": 30, "fps": 25.0, "reference": reference}
    wave = np.zeros(19200, np.float32)
    still = from_speech(model, wave, drive=SpeechDrive(neutral="silence"), **options)
    torch.testing.assert_close(still[20:], reference.expand(10, -1), atol=1e-4, rtol=0)
    biased = from_speech(model, wave, drive=SpeechDrive(neutral="reference"), **options)
    assert (biased - reference).abs().max() > 1e-3


def test_pauses_show_the_portrait():
    torch.manual_seed(0)
    model = Audio2Exp().eval()
    wave = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)
    wave[24000:32000] *= 1e-3
    reference = torch.rand(64) * 0.2
    options = {"num_frames": 75, "fps": 25.0, "reference": reference}
    track = from_speech(model, wave, drive=SpeechDrive(scale=2.0), **options)
    distance = (track - reference).norm(dim=1)
    assert distance[41:47].mean() < 0.3 * distance[:30].mean()


def test_speech_scale_exaggerates_around_the_reference():
    torch.manual_seed(0)
    model = Audio2Exp().eval()
    reference = torch.rand(64)
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    options = {"num_frames": 25, "fps": 25.0, "reference": reference}
    one = from_speech(model, wave, drive=SpeechDrive(scale=1.0, neutral="reference"), **options)
    two = from_speech(model, wave, drive=SpeechDrive(scale=2.0, neutral="reference"), **options)
    assert one.shape == (25, 64)
    torch.testing.assert_close(two - reference, 2 * (one - reference), atol=1e-5, rtol=1e-4)


def test_smoothing_keeps_quadratics_and_short_tracks():
    t = torch.arange(12.0)
    track = torch.stack((t, t**2), 1)
    torch.testing.assert_close(smooth(track, 5), track, atol=1e-4, rtol=1e-5)
    assert torch.equal(smooth(track[:2], 5), track[:2])
    assert torch.equal(smooth(track, 0), track)
    noisy = track + torch.randn(12, 2)
    assert (smooth(noisy, 5).diff(dim=0).diff(dim=0).abs().mean()) < noisy.diff(dim=0).diff(
        dim=0
    ).abs().mean()


def test_clamp_follows_the_models_bounds():
    lower, upper = torch.full((64,), -torch.inf), torch.full((64,), torch.inf)
    lower[:52], upper[:52] = 0, 1
    values = torch.full((2, 64), 1.7)
    clamped = clamp_bounds(values, lower, upper)
    assert (clamped[:, :52] == 1).all()
    assert (clamped[:, 52:] == 1.7).all()
    assert (clamp_bounds(-values, lower, upper)[:, :52] == 0).all()


def test_blinks_are_deterministic_and_close_the_eyes():
    ratio = blink_ratio(500, fps=25, seed=3)
    assert np.array_equal(ratio, blink_ratio(500, fps=25, seed=3))
    assert not np.array_equal(ratio, blink_ratio(500, fps=25, seed=4))
    assert ratio.max() == 1
    assert (ratio == 0).mean() > 0.8
    track = add_blinks(torch.zeros(500, 64), NAMES, fps=25, seed=3)
    assert track[:, 0].max() == 1
    assert (track[:, 2:] == 0).all()
    with pytest.raises(InputError, match="blink=none"):
        add_blinks(torch.zeros(5, 64), ["exp0"] * 64, fps=25, seed=0)


def test_energy_follows_loudness():
    wave = np.concatenate((np.zeros(8000), 0.5 * np.ones(8000))).astype(np.float32)
    energy = speech_energy(wave, 16000, num_frames=25, fps=25)
    assert energy[5] == 0
    assert energy[20] == pytest.approx(0.5)
    assert correlation(energy, energy) == pytest.approx(1.0)
    assert correlation(energy, np.ones_like(energy)) == 0.0
