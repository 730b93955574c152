"""Audio2Exp: mel window, reference expression and blink ratio to 64 expression coefficients.

Legend: N frames in any order, T frames of one clip in time order.
Sources: spec/audio.md 2.4 and 2.5.
"""

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from nfs.audio.encoder import EMBEDDING_SIZE, AudioEncoder

NUM_EXPRESSION = 64
ScaleMode = Literal["motion", "whole"]

_log = logging.getLogger(__name__)


class Audio2Exp(nn.Module):
    """The expression itself (no residual to the reference) as a linear map of the encoded window.

    State-dict names equal the original's: `audio_encoder.*` and `mapping1.*`, 93 tensors.
    """

    def __init__(self) -> None:
        """Build the network with random weights and a zero output bias."""
        super().__init__()
        self.audio_encoder = AudioEncoder()
        self.mapping1 = nn.Linear(EMBEDDING_SIZE + NUM_EXPRESSION + 1, NUM_EXPRESSION)
        nn.init.zeros_(self.mapping1.bias)

    def forward(self, windows: Tensor, reference: Tensor, blink: Tensor) -> Tensor:
        """Return expressions [N, 64].

        Args:
            windows: Mel windows [N, 80, 16] in [-4, 4].
            reference: Reference expression [N, 64].
            blink: Blink ratio [N, 1] in [0, 1]; 0 keeps the reference's eyes, 1 is closed.
        """
        return self.mapping1(torch.cat([self.audio_encoder(windows), reference, blink], dim=1))

    def start_from(self, weight: Tensor, bias: Tensor, audio_gain: float = 0.01) -> None:
        """Re-initialise the output layer to `weight @ reference + bias` plus a little audio.

        Training then begins at the best guess without audio instead of at noise.

        Args:
            weight: [64, 64].
            bias: [64].
            audio_gain: Factor on the random weights of the audio part, >= 0.
        """
        audio, reference, blink = self.split_mapping()
        with torch.no_grad():
            audio.mul_(audio_gain)
            reference.copy_(weight)
            blink.zero_()
            self.mapping1.bias.copy_(bias)

    def split_mapping(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight views: audio [64, 512], reference [64, 64], blink [64, 1]."""
        audio, reference, blink = self.mapping1.weight.split([EMBEDDING_SIZE, NUM_EXPRESSION, 1], 1)
        return audio, reference, blink


def recurrence_radius(model: Audio2Exp, feedback: float = 0.5) -> float:
    """Return the spectral radius of `feedback * W_r`; stable iff it is below 1."""
    _, weight, _ = model.split_mapping()
    eigenvalues = torch.linalg.eigvals(feedback * weight.detach().double().cpu())
    return float(eigenvalues.abs().max())


@torch.no_grad()
def predict_expressions(
    model: Audio2Exp,
    windows: Tensor,
    reference: Tensor,
    *,
    feedback: float = 0.5,
    scale: float = 1.5,
    scale_mode: ScaleMode = "motion",
    blink: Tensor | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Return the expressions [T, 64] of one clip by NeRFFaceSpeech's feedback loop (2.5).

    `r_0 = root`, `p_t = Audio2Exp(window_t, r_t)`, `r_{t+1} = (1 - feedback) root + feedback p_t`.
    The map is linear in r: the encoder runs in batches, only a 64x64 recurrence is sequential.

    Args:
        model: In eval mode (BatchNorm must not see the batch).
        windows: Mel windows [T, 80, 16] on the model's device, or on the CPU for long clips.
        reference: Expression of the portrait, the root [64].
        feedback: Share of the last prediction in the next reference, in [0, 1].
        scale: Exaggeration, 1 is none.
        scale_mode: `motion` scales around the reference, `whole` the vector (the original).
        blink: Blink ratios [T] in [0, 1]; none is all open.
        batch_size: Windows encoded at once.

    Raises:
        ValueError: If the model is in training mode or a shape is wrong.
    """
    if model.training:
        raise ValueError("predict_expressions needs model.eval(): BatchNorm would mix the frames")
    if reference.shape != (NUM_EXPRESSION,) or windows.ndim != 3:
        raise ValueError(
            f"windows {tuple(windows.shape)}, reference {tuple(reference.shape)}; "
            "expected [T, 80, 16] and [64]"
        )
    radius = recurrence_radius(model, feedback)
    if radius >= 1.0:
        _log.warning(
            "Audio2Exp feedback is unstable (spectral radius %.3f); lower `feedback`", radius
        )
    drive = _drive(model, windows, blink, batch_size)
    _, weight, _ = model.split_mapping()
    root = reference.to(drive)
    current, outputs = root, []
    for audio_part in drive:
        prediction = audio_part + weight @ current
        outputs.append(prediction)
        current = (1.0 - feedback) * root + feedback * prediction
    expressions = torch.stack(outputs) if outputs else drive
    return expressions * scale if scale_mode == "whole" else root + scale * (expressions - root)


def _drive(model: Audio2Exp, windows: Tensor, blink: Tensor | None, batch_size: int) -> Tensor:
    """Return the part [T, 64] of every prediction that does not depend on the feedback."""
    bias = model.mapping1.bias
    audio, _, blink_weight = model.split_mapping()
    parts = [model.audio_encoder(chunk.to(bias)) @ audio.T for chunk in windows.split(batch_size)]
    drive = torch.cat(parts) + bias if windows.shape[0] else bias.new_zeros(0, NUM_EXPRESSION)
    if blink is None:
        return drive
    return drive + blink.to(bias)[:, None] @ blink_weight.T
