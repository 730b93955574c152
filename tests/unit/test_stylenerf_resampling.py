"""FIR resampling against its definition, second derivatives, error messages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nfs.stylenerf import resampling as R


def definition(x, taps, *, up, down, padding, gain, flip):
    """Zeros between pixels, padding, the complete filter, every `down`-th pixel."""
    left, right, top, bottom = padding
    y = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
    y[:, :, ::up, ::up] = x
    y = F.pad(y, (left, right, top, bottom))
    kernel = torch.outer(taps, taps) if taps.ndim == 1 else taps
    kernel = (kernel if flip else kernel.flip((0, 1))) * gain
    y = F.conv2d(y.flatten(0, 1)[:, None], kernel[None, None]).unflatten(0, x.shape[:2])[:, :, 0]
    return y[:, :, ::down, ::down]


@given(
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    taps=st.integers(1, 6),
    separable=st.booleans(),
    flip=st.booleans(),
    padding=st.tuples(*[st.integers(-2, 4)] * 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_resampling_equals_its_definition(up, down, taps, separable, flip, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 12, 11, generator=generator, dtype=torch.float64)
    kernel = torch.randn((taps,) if separable else (taps, taps), generator=generator).double()
    how = {"up": up, "down": down, "padding": padding, "gain": 1.7, "flip": flip}
    expected = definition(x, kernel, **how)
    torch.testing.assert_close(R.upfirdn(x, kernel, **how), expected)


def test_sizes_of_the_named_operators():
    x = torch.randn(1, 2, 8, 6)
    for taps in (R.fir_taps([1, 3, 3, 1]), R.fir_taps(range(1, 13))):
        assert R.filter2d(x, taps).shape == (1, 2, 8, 6)
        assert R.upsample2d(x, taps).shape == (1, 2, 16, 12)
        assert R.downsample2d(x, taps).shape == (1, 2, 4, 3)
    assert R.fir_taps(range(1, 13)).ndim == 1  # long filters stay separable
    assert R.filter2d(x, taps, padding=1).shape == (1, 2, 10, 8)
    assert R.filter2d(x, taps, padding=(1, -1)).shape == (1, 2, 6, 8)


def test_fast_paths_equal_the_general_operator():
    torch.manual_seed(0)
    x, taps = torch.randn(2, 3, 6, 6), R.fir_taps([1, 3, 3, 1])
    torch.testing.assert_close(R.fir_filter(x), R.filter2d(x, taps))
    torch.testing.assert_close(R.fir_upsample(x), R.upsample2d(x, taps))
    torch.testing.assert_close(R.fir_downsample(x), R.downsample2d(x, taps))


@pytest.mark.parametrize("size", [1, 3])
def test_first_and_second_derivatives(size):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, size, size, dtype=torch.float64, requires_grad=True)
    for operator in (R.conv2d_up, R.conv2d_down):
        assert torch.autograd.gradcheck(operator, (x, weight))
        assert torch.autograd.gradgradcheck(operator, (x, weight))


@pytest.mark.parametrize("taps", [torch.ones(3), torch.ones(3, 3)])
def test_derivatives_of_the_general_operator(taps):
    x = torch.randn(1, 1, 4, 3, dtype=torch.float64, requires_grad=True)

    def squared(x):
        return R.upfirdn(x, taps.double(), up=2, down=3, padding=(2, -1, 0, 1)).square()

    assert torch.autograd.gradgradcheck(squared, (x,))


def test_errors_say_what_is_wrong():
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"taps must be \[k\] or \[k, k\], got \[2, 3\]"):
        R.upfirdn(x, torch.ones(2, 3))
    with pytest.raises(ValueError, match="nothing is left"):
        R.upfirdn(x, torch.ones(4), padding=-1)
