"""The helpers of checks: what they say, and what they refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from labutils import backprop, exercise, models, similarity
from labutils.exercise import AnswerUsedError, Mistake, attempt, compare, same_form, without

# --- The helpers --------------------------------------------------------------------------------------------------


def says(got: Any, expected: Any, **options: Any) -> str:
    """What compare says."""
    with pytest.raises(Mistake) as error:
        compare(got, expected, "it", **options)
    return str(error.value)


A = np.array([[1.0, -2.0, 3.5], [4.0, 5.0, -6.25]])
Q = np.array([[1.0, 2.0], [3.0, 4.5]])


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (3.0, 2.5, "it: 3, expected 2.5."),
        (np.r_[1.0, 2.0], np.r_[1.0, 3.0], "it: first wrong entry [1]: 2, expected 3 (1 of 2 entries is wrong)."),
        (-A, A, "Likely cause: the sign."),
        (-2.0, 2.0, "Likely cause: the sign."),
        (2 * A, A, "Likely cause: a factor: all 2 times too large."),
        (A / 12, A, "Likely cause: a factor: all 12 times too small."),
        (-3 * A, A, "Likely cause: a factor: all 3 times too large and of the other sign."),
        (1.375 * A, A, "Likely cause: a factor: all 1.375 times too large."),
        (6.0, 0.5, "Likely cause: a factor: 12 times too large."),
        (A + 0.5, A, "Likely cause: a constant: all off by +0.5."),
        (3.5, 2.5, "Likely cause: a constant: off by +1."),
        (Q.T, Q, "Likely cause: transposed."),
        (Q[::-1], Q, "Likely cause: the order is reversed."),
        (A[:, ::-1], A, "Likely cause: the columns are in reversed order."),
        (A.ravel()[[3, 1, 2, 0, 5, 4]], A.ravel(), "Likely cause: the right numbers in another order."),
        (np.zeros(3), np.arange(3.0), "Likely cause: the result is never filled in, all is 0."),
        (0.25, 0.5, "Likely cause: squared once too often."),
        (0.5, 0.25, "Likely cause: a root too many, or a square is missing."),
        (np.trunc(A), A, "Likely cause: cut to whole numbers."),
        (np.round(A + 0.01), A + 0.01, "Likely cause: rounded to whole numbers."),
        (np.array([1.0, math.nan, 2.0]), np.ones(3), "it: first wrong entry [1]: nan, expected 1 (2 of 3"),
        (math.inf, 1.0, "Likely cause: a division by 0, the logarithm or root of a number below 0, or an overflow."),
        (A.T, A, "it: shape (3, 2), expected (2, 3): transposed?"),
        (math.nan, 1.0, "it: nan, expected 1. Likely cause: a division by 0"),
        ([1.0, math.nan], [1.0, 2.0], "it[1]: nan, expected 2. Likely cause: a division by 0"),
        (torch.tensor([math.nan], dtype=torch.bfloat16), [1.0], "it is a Tensor, expected a list of 1 entry."),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.0, "it: 1.5, expected 1."),
        ([np.ones(2), np.ones((2, 1))], [np.ones(2)] * 2, "it[1]: shape (2, 1), expected (2,): an axis of length 1"),
        (np.ones(5), 1.0, "it: shape (5,), expected (), a single number: is a sum, mean or norm missing?"),
        (np.ones(1), 1.0, "it: shape (1,), expected (): take its only entry."),
        (1.0, np.ones(5), "it: shape (), expected (5,): is it reduced to one number too early?"),
        (np.ones((5, 1)), np.ones(5), "it: shape (5, 1), expected (5,): an axis of length 1 is too many or missing."),
        (np.ones(6), A, "it: shape (6,), expected (2, 3): the same number of entries"),
        (np.ones(4), np.ones(5), "it: shape (4,), expected (5,)."),
        (torch.ones(2), torch.ones(2, dtype=torch.int64), "it: numbers of type float32, expected whole ones (int64)."),
        (np.ones(2, complex), np.ones(2), "it: complex numbers, expected real ones."),
        (None, 1.0, "it is None (is a `return` missing?), expected numbers."),
        (len, 1.0, "it is the function len (are its parentheses missing?), expected numbers."),
        ("3", 1.0, "it is a str, expected numbers."),
        ([[1.0], [1.0, 2.0]], A, "it is a list that does not make an array"),
        ((torch.ones(2), torch.ones(3)), A, "an array: a tuple of [Tensor (2,) float32, Tensor (3,) float32]; return"),
        (torch.ones(2), {"a": 1.0}, "it is a Tensor, expected a dict with the keys ['a']."),
        ({"b": 1.0}, {"a": 1.0}, "it lacks the keys ['a']; it has ['b']."),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0}, "it has keys that do not belong there: ['b']."),
        ({"a": 2.5}, {"a": 1.0}, "it['a']: 2.5, expected 1."),
        (1.0, (1.0, 2.0), "it is a float, expected a tuple of 2 entries."),
        ([1.0], [1.0, 2.0], "it has 1 entry, expected 2."),
        ([1.0, 7.3], [1.0, 2.0], "it[1]: 7.3, expected 2."),
    ],
)
def test_compare_says_what_differs(got: Any, expected: Any, words: str) -> None:
    said = says(got, expected)
    assert words in said
    assert re.search(r"[^.?][.?]$", said), "it ends with one mark"


def test_compare_accepts_what_is_right() -> None:
    compare(torch.tensor(0.5, requires_grad=True), 0.5)
    compare([1, 2], np.array([1.0, 2.0]))
    compare(torch.ones(3), np.ones(3))
    compare(3, 3.0)
    compare((1.0, torch.ones(2)), [1.0, np.ones(2)])
    compare([1.0, torch.ones(2)], (1.0, np.ones(2)))
    compare(torch.ones(2, dtype=torch.bfloat16), np.ones(2))
    compare([torch.tensor(1.0, requires_grad=True), torch.tensor(2.0)], np.array([1.0, 2.0]))
    compare([-math.inf, math.inf], np.array([-math.inf, math.inf]))
    compare({"b": 1.0, "a": 2.0}, {"a": 2.0, "b": 1.0})
    compare(1.001, 1.0, rtol=1e-2)
    compare(1e-5, 0.0, atol=1e-4)


@pytest.mark.parametrize("expected", [math.nan, [1.0, math.nan], {"a": np.array([math.nan])}])
def test_nothing_equals_nan(expected: Any) -> None:
    with pytest.raises(ValueError, match="NaN in what is expected"):
        compare(expected, expected)


def test_causes_are_tried_before_common_ones_and_the_hint_comes_last() -> None:
    assert "Likely cause: mine." in says(-A, A, causes={"other": 3 * A, "mine": -A})
    assert says(7.3, 2.5, causes={"mine": 4.0}, hint="Look twice.") == "it: 7.3, expected 2.5. Look twice."
    assert "Look twice" not in says(-A, A, hint="Look twice.")
    assert "mine" not in says(2.50001, 2.5, rtol=1e-7, causes={"mine": 2.5000001}), "a cause that changes nothing"
    assert says(1.0000001, 1.0, rtol=1e-9) == "it: 1.0000001, expected 1. Likely cause: too few digits, as of float32."
    assert "float32" in says(np.float64(np.float32(0.1)) * np.ones(3), 0.1 * np.ones(3), rtol=1e-12, atol=0)


@settings(max_examples=40)
@given(arrays(np.float64, (2, 3), elements=st.floats(-1e3, 1e3)), st.integers(0, 5), st.floats(0.01, 1e3))
def test_compare_finds_any_single_wrong_entry(right: np.ndarray, at: int, off: float) -> None:
    wrong = right.copy()
    wrong.flat[at] += off * (1 + abs(wrong.flat[at]))
    compare(right.copy(), right)
    assert f"first wrong entry [{at // 3}, {at % 3}]" in says(wrong, right)


def test_same_form_leaves_the_numbers_free() -> None:
    same_form(torch.tensor([5, 6]), np.array([1, 2]))
    same_form(np.array([True, False]), np.array([1, 2]))
    same_form([0.5], [1.0])
    with pytest.raises(Mistake, match="shape"):
        same_form(torch.zeros(2, 1), torch.zeros(2))


def test_attempt_passes_arguments_results_and_names_on() -> None:
    def f(x: int, *, y: int = 2) -> int:
        """Words."""
        return x + y

    assert attempt(f)(1, y=5) == 6
    assert (attempt(f).__name__, attempt(f).__doc__) == ("f", "Words.")
    with pytest.raises(TypeError, match="attempt takes a function, not 3"):
        attempt(3)  # type: ignore[arg-type]
    with pytest.raises(Mistake, match="f does not take the arguments of the exercise: "):
        attempt(f)(1, 2, 3)


def test_an_exception_in_the_function_gets_a_note_with_its_arguments() -> None:
    def f(x: torch.Tensor, n: int, model: nn.Module, text: str, W: list) -> None:
        raise NotImplementedError("torch says this, too")

    with pytest.raises(NotImplementedError) as error:
        attempt(f)(torch.ones(2, 3), 5, nn.Linear(1, 1), "x" * 100, [torch.ones(1, 2).bfloat16(), np.ones(3)] * 3)
    [note] = error.value.__notes__
    assert note == (
        "f was called with x = Tensor (2, 3) float32, n = 5, model = a network (Linear), text = a str, W = a list of"
        " [Tensor (1, 2) bfloat16, ndarray (3,) float64, Tensor (1, 2) bfloat16, ndarray (3,) float64] and 2 more"
    )


@pytest.mark.parametrize(
    ("value", "spoil"),
    [
        (torch.ones(2), lambda value: value.add_(1)),
        (torch.ones(2), lambda value: value.resize_(1)),
        (torch.tensor([math.nan, 1.0]), lambda value: value[:1].fill_(0)),
        (torch.tensor([0.0, 1.0], dtype=torch.bfloat16), lambda value: value[:1].fill_(math.nan)),
        (torch.tensor([math.inf]), lambda value: value.fill_(torch.finfo().max)),
        (np.ones(2), lambda value: value.fill(3)),
        (np.array([math.nan, 1.0]), lambda value: value[:1].fill(0)),
        ([torch.ones(2), torch.ones(2)], lambda value: value[1].mul_(2)),
        ([1, torch.ones(2)], lambda value: value.pop()),
        ({"W": torch.ones(2)}, lambda value: value["W"].zero_()),
        (nn.Linear(2, 2), lambda value: value.weight.data.zero_()),
        (nn.BatchNorm1d(2), lambda value: value.running_mean.fill_(math.nan)),
    ],
)
def test_changed_arguments_are_named(value: Any, spoil: Callable[[Any], Any]) -> None:
    def f(first: int, given: Any) -> int:
        spoil(given)
        return first

    simple = isinstance(value, torch.Tensor | np.ndarray)
    how = r"x = x - 1 makes one, x -= 1 does not" if simple else r"copy.deepcopy\(given\) makes one"
    with pytest.raises(Mistake, match=rf"f changes its argument given: work on a copy \({how}\)"):
        attempt(f)(1, value)


def test_unchanged_arguments_are_left_alone() -> None:
    given_ones = [
        torch.tensor([math.nan]),
        torch.tensor([math.nan, -math.inf], dtype=torch.bfloat16),
        torch.tensor([complex(math.nan, 1)]),
        torch.ones(4)[::2],
        torch.ones(0),
        np.array([math.nan]),
        {"nan": [torch.tensor(math.nan), torch.tensor(True)]},
        np.array(["a"]),
        nn.BatchNorm1d(3),
        [1, "two", None],
        5,
    ]
    given_ones.append(torch.ones(2, requires_grad=True) * 2)  # no leaf: deepcopy would refuse it
    for value in given_ones:
        assert attempt(lambda x: 1)(value) == 1


def test_without_refuses_a_function_by_every_way_to_it() -> None:
    a, b = torch.eye(9)[:, :3], torch.eye(9)[:, 2:6]
    before = similarity.cka(a, b)
    imported = similarity.cka
    with without("similarity.cka", "similarity._cka", "backprop.backpropagate", "models.count_parameters"):
        for call in (
            lambda: imported(a, b),
            lambda: similarity.cka(x=a, y=b),
            lambda: similarity.similarity_matrix({"a": a}, {"b": b}),  # through a table of functions
            lambda: backprop.backpropagate(nn.Sequential(), a, b),  # through a decorator
            lambda: models.count_parameters(nn.Linear(2, 2)),
        ):
            with pytest.raises(AnswerUsedError, match=r"asks you to write what [\w. ]+ does"):
                call()
        assert similarity.svcca(a, a) == pytest.approx(1)
    assert similarity.cka(a, b) == before
    assert models.count_parameters(nn.Linear(2, 2)) == 6


def test_without_refuses_classes_and_lets_them_go() -> None:
    parameters = [nn.Parameter(torch.ones(1))]
    for name in ("optim.SGD", "torch.optim.SGD", "similarity.MinibatchCKA", "similarity.LayerMatching"):
        kind = exercise._find(name)
        before = vars(kind).get("__init__")
        with without(name), pytest.raises(AnswerUsedError, match=re.escape(name)):
            kind(parameters)
        assert vars(kind).get("__init__") is before
    assert torch.optim.SGD(parameters, lr=1.0)


def test_without_ends_after_an_error_and_within_another() -> None:
    with pytest.raises(ZeroDivisionError), without("models.count_parameters"):
        1 / 0  # noqa: B018
    with without("models.count_parameters"):
        with without("models.count_parameters"):
            pass
        with pytest.raises(AnswerUsedError):
            models.count_parameters(nn.Linear(2, 2))
    assert models.count_parameters(nn.Linear(2, 2)) == 6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("similarity.nothing", "there is no similarity.nothing, neither in labutils nor elsewhere"),
        ("no such module", "there is no no such module"),
        ("math.sqrt", "cannot refuse math.sqrt"),
    ],
)
def test_without_refuses_unknown_names(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words), without("models.count_parameters", name):
        pass
    assert models.count_parameters(nn.Linear(2, 2)) == 6, "what was refused already is free again"
