"""The functions against their formulas, and the sampling grid."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labutils import functions


@given(st.floats(-3, 3))
def test_sinc_is_its_formula(x: float) -> None:
    expected = math.sin(5 * math.pi * x) / (5 * math.pi * x) if abs(x) > 1e-12 else 1.0
    assert functions.sinc(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-12)


@given(st.integers(-15, 14), st.floats(0.01, 0.19))
def test_sign_sine_alternates_every_fifth(k: int, inside: float) -> None:
    x = torch.tensor([k / 5 + inside], dtype=torch.float64)
    assert functions.sign_sine(x).item() == (1.0 if k % 2 == 0 else -1.0)


@pytest.mark.parametrize("name", ["sinc", "sign_sine", "quadratic"])
def test_sample_is_an_even_grid_with_both_ends(name: str) -> None:
    x, y = functions.sample(name, 11, -0.97, 0.97)
    assert x.shape == y.shape == (11, 1)
    assert x.dtype == y.dtype == torch.float32
    torch.testing.assert_close(x.flatten(), torch.linspace(-0.97, 0.97, 11))
    torch.testing.assert_close(y, getattr(functions, name)(x.double()).float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosine", 10, 0, 1), "unknown function 'cosine'; there are sinc, sign_sine, quadratic"),
        (("sinc", 1, 0, 1), "n = 1"),
        (("sinc", 10, 1, 1), "is empty"),
        (("sinc", 10, 2, 1), "is empty"),
    ],
)
def test_bad_input_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functions.sample(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sign_sine_is_zero_at_its_jumps(dtype: torch.dtype) -> None:
    jumps = torch.arange(-50, 51, dtype=torch.float64) / 5
    for x in (jumps, 0.2 * torch.arange(-50, 51, dtype=torch.float64)):  # which differ by rounding
        assert torch.equal(functions.sign_sine(x.to(dtype)), torch.zeros(101, dtype=dtype))
    assert functions.sign_sine(jumps + 1e-12).abs().min() == 1


@given(st.integers(-20, 19), st.integers(1, 40), st.integers(1, 6))
def test_a_sampled_square_wave_is_zero_at_exactly_its_jumps(first: int, fifths: int, steps: int) -> None:
    """Grids over [first/5, (first + fifths)/5] that meet every multiple of 0.2, and `steps` − 1 points between."""
    _, y = functions.sample("sign_sine", fifths * steps + 1, first / 5, (first + fifths) / 5)
    place = torch.arange(fifths * steps + 1)
    sign = torch.where((first + place.div(steps, rounding_mode="floor")) % 2 == 0, 1.0, -1.0)
    assert torch.equal(y.flatten(), torch.where(place % steps == 0, 0.0, sign))
