"""The compiled sweep behind `nfs.arcface.prelu`."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Rows summed in float32 before they are added in float64.
_BLOCK = 512

F32 = NDArray[np.float32]


@njit(fastmath=True, cache=True)  # type: ignore[untyped-decorator] # numba has no types
def prelu_backward(x: F32, grad: F32, out: F32, weight: F32, slopes: NDArray[np.float64]) -> None:
    """Write the input's gradient and add the slopes' gradient.

    Args:
        x: Input `[N, C]`.
        grad: Gradient of the output `[N, C]`.
        out: Receives the gradient of the input `[N, C]`.
        weight: Slopes `[C]`.
        slopes: Receives their gradient `[C]`.
    """
    count, channels = x.shape
    part = np.empty(channels, np.float32)
    for start in range(0, count, _BLOCK):
        part[:] = 0
        for i in range(start, min(count, start + _BLOCK)):
            for k in range(channels):
                low = min(x[i, k], np.float32(0))
                part[k] += low * grad[i, k]
                out[i, k] = grad[i, k] if x[i, k] > 0 else grad[i, k] * weight[k]
        for k in range(channels):
            slopes[k] += part[k]
