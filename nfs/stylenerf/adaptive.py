"""Augmentation of what the discriminator sees, with a strength that follows its overfitting.

Karras et al. 2020, section 3: when D is too sure of real images, their distortions become likelier.
"""

import torch
from torch import Tensor

from nfs.stylenerf.augment import AugmentPipe
from nfs.stylenerf.settings import AugmentSettings


class AdaptiveAugment:
    """The augmentation pipe and its strength p.

    Args:
        settings: Operations and target, or None: images stay as they are.
        batch_size: Global batch.
        device: Where the pipe runs.
    """

    def __init__(
        self, settings: AugmentSettings | None, batch_size: int, device: torch.device
    ) -> None:
        self.settings = settings
        self.batch_size = batch_size
        self.pipe = None if settings is None else AugmentPipe(settings.operations).to(device)
        self.p = 0.0 if settings is None else settings.initial_p
        self._signs, self._batches = torch.zeros((), device=device), 0

    def __call__(self, images: Tensor) -> Tensor:
        """Distort images `[B, 3, R, R]`."""
        if self.pipe is None or self.p == 0:
            return images
        distorted: Tensor = self.pipe(images, self.p)
        return distorted

    def observe(self, real_sign: Tensor) -> None:
        """Count one batch and move p when it is time.

        Args:
            real_sign: Mean sign of the logits of the batch's real images, the same on all ranks.
        """
        settings = self.settings
        if settings is None or settings.target is None:
            return
        self._signs = self._signs + real_sign
        self._batches += 1
        if self._batches < settings.every:
            return
        excess = float(self._signs) / self._batches - settings.target
        step = self._batches * self.batch_size / (1000 * settings.kimg)
        direction = (excess > 0) - (excess < 0)
        self.p = min(1.0, max(0.0, self.p + direction * step))
        self._signs, self._batches = torch.zeros_like(self._signs), 0

    def state_dict(self) -> dict[str, float]:
        """Return the strength and what was observed since it moved."""
        return {"p": self.p, "signs": float(self._signs), "batches": float(self._batches)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.p, self._batches = state["p"], int(state["batches"])
        self._signs = torch.full_like(self._signs, state["signs"])
