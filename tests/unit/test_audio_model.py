import logging

import pytest
import torch

from nfs.audio.audio2exp import Audio2Exp, predict_expressions, recurrence_radius
from nfs.audio.original import (
    export_audio2exp,
    load_audio2exp,
    load_wav2lip_encoder,
)
from nfs.errors import InputError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Audio2Exp().eval()


def inputs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    windows = 4 * torch.rand(count, 80, 16, generator=generator) - 2
    return windows, torch.randn(count, 64, generator=generator), torch.rand(count, 1)


def test_size_and_names_are_the_originals(model):
    state = model.state_dict()
    assert len(state) == 93
    assert sum(p.numel() for p in model.parameters()) == 2_849_664
    assert sum(p.numel() for p in model.audio_encoder.parameters()) == 2_812_672
    assert "audio_encoder.12.conv_block.1.running_var" in state
    assert state["mapping1.weight"].shape == (64, 577)


def test_frames_are_independent_in_eval_mode(model):
    windows, reference, blink = inputs(5)
    with torch.no_grad():
        together = model(windows, reference, blink)
        alone = torch.cat(
            [model(windows[i : i + 1], reference[i : i + 1], blink[i : i + 1]) for i in range(5)]
        )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_embeddings_are_non_negative(model):
    embedding = model.audio_encoder(inputs(3)[0])
    assert embedding.shape == (3, 512)
    assert (embedding >= 0).all()


def test_every_parameter_gets_a_gradient():
    model = Audio2Exp().train()
    model(*inputs(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_start_from_is_a_map_of_the_reference_plus_little():
    model = Audio2Exp().eval()
    windows, reference, blink = inputs(3)
    model.start_from(2 * torch.eye(64), torch.ones(64), audio_gain=0.0)
    torch.testing.assert_close(model(windows, reference, blink), 2 * reference + 1)


def sequential(model, windows, root, feedback, scale):
    reference, outputs = root, []
    with torch.no_grad():
        for window in windows:
            output = model(window[None], reference[None], torch.zeros(1, 1))[0]
            outputs.append(output)
            reference = (1 - feedback) * root + feedback * output
    return scale * torch.stack(outputs)


def test_batched_recurrence_equals_the_frame_by_frame_loop(model):
    windows, reference, _ = inputs(7)
    fast = predict_expressions(
        model, windows, reference[0], scale=1.5, scale_mode="whole", batch_size=3
    )
    slow = sequential(model, windows, reference[0], 0.5, 1.5)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


def test_motion_scaling_keeps_the_reference(model):
    windows, reference, _ = inputs(4)
    plain = predict_expressions(model, windows, reference[0], scale=1.0)
    frozen = predict_expressions(model, windows, reference[0], scale=0.0)
    double = predict_expressions(model, windows, reference[0], scale=2.0)
    torch.testing.assert_close(frozen, reference[:1].expand(4, -1))
    torch.testing.assert_close(double - reference[0], 2 * (plain - reference[0]))


def test_blink_adds_its_column(model):
    windows, reference, _ = inputs(3)
    model_blink = predict_expressions(
        model, windows, reference[0], feedback=0.0, scale=1.0, blink=torch.ones(3)
    )
    without = predict_expressions(model, windows, reference[0], feedback=0.0, scale=1.0)
    expected = model.split_mapping()[2][:, 0].expand(3, -1)
    torch.testing.assert_close(model_blink - without, expected, atol=1e-5, rtol=1e-4)


def test_no_windows_give_no_expressions(model):
    assert predict_expressions(model, torch.zeros(0, 80, 16), torch.zeros(64)).shape == (0, 64)


def test_an_unstable_recurrence_is_reported(caplog):
    model = Audio2Exp().eval()
    model.start_from(torch.eye(64), torch.zeros(64))
    assert recurrence_radius(model, 0.5) == pytest.approx(0.5)
    with torch.no_grad():
        model.split_mapping()[1].mul_(3.0)
    with caplog.at_level(logging.WARNING):
        predict_expressions(model, torch.zeros(1, 80, 16), torch.zeros(64))
    assert "spectral radius 1.5" in caplog.text


def test_training_mode_and_wrong_shapes_are_refused():
    model = Audio2Exp().train()
    with pytest.raises(ValueError, match="eval"):
        predict_expressions(model, torch.zeros(1, 80, 16), torch.zeros(64))
    with pytest.raises(ValueError, match="expected"):
        predict_expressions(model.eval(), torch.zeros(1, 80, 16), torch.zeros(1, 64))


def test_export_and_import_are_exact(model):
    exported = export_audio2exp(model, "audio2exp.")
    exported["audio2pose.other"] = torch.zeros(1)
    loaded = load_audio2exp(exported).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_import_names_what_does_not_fit(model):
    state = export_audio2exp(model)
    del state["mapping1.bias"]
    with pytest.raises(InputError, match=r"mapping1\.bias"):
        load_audio2exp(state)
    state["mapping1.bias"] = torch.zeros(65)
    with pytest.raises(InputError, match="size mismatch"):
        load_audio2exp(state)
    with pytest.raises(InputError, match="no configuration"):
        load_audio2exp(state, {"depth": 3})


def test_wav2lip_weights_initialise_the_encoder(model):
    wav2lip = {
        f"module.audio_encoder.{name}": value
        for name, value in model.audio_encoder.state_dict().items()
    }
    other = Audio2Exp()
    load_wav2lip_encoder(other, wav2lip)
    expected = model.audio_encoder[3].conv_block[0].weight
    assert torch.equal(other.audio_encoder[3].conv_block[0].weight, expected)
    with pytest.raises(InputError, match="missing"):
        load_wav2lip_encoder(other, {})
