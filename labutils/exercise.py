"""Checks of exercises that help: what differs, where first, and why probably.

A check cell of a notebook calls the student's function through `attempt`, which refuses the functions of labutils that
would be the answer, and gives the result to `compare`::

    def check_linear_cka():
        solve = exercise.attempt(linear_cka, without=["similarity.cka"])
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            a, b = (torch.randn(30, p, generator=generator) for p in (4, 7))
            expected = similarity.cka(a, b)
            exercise.compare(solve(a, b), expected, "CKA", causes={"the square is missing": sqrt(expected)})

    check_linear_cka()

It stands in a function, so that what it expects is no variable that an answer could return. Cases are drawn with a
seed, so that one answer gets one verdict. Whatever runs on a student's machine, the student can change.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

_HYPOTHESIS = 1e-4  # how near, relatively, a wrong result must come to what a mistake would give
_FACTORS = 1000  # a single number counts as a multiple up to this one
_REFUSED: list[str] = []  # by `without`, at the moment


class Mistake(AssertionError):
    """What a student's function does wrong, in words."""


class AnswerUsedError(RuntimeError):
    """A function was called that an exercise asks the student to write."""


# --- Calling the student's function -------------------------------------------------------------------------------


def attempt(function: Callable[..., Any], without: Sequence[str] = ()) -> Callable[..., Any]:
    """Wrap a student's function, so that what goes wrong in it is said in words.

    Args:
        function: the student's function.
        without: names of the functions that would be the answer, as for `without`.

    Returns:
        A function that calls it, and raises `Mistake` if it is not written yet, returns None or changes what it is
        given (tensors, arrays, networks, lists and dicts of them); an exception in it gets a note with its arguments.

    Example:
        >>> def double(x):
        ...     x *= 2
        ...     return x
        >>> attempt(double)(torch.ones(2))
        Traceback (most recent call last):
        labutils.exercise.Mistake: double changes its argument x: work on a copy (x = x - 1 makes one, x -= 1 does not)
    """
    if not callable(function):
        raise TypeError(f"attempt takes a function, not {function!r}: has its name been given to something else?")
    name = getattr(function, "__name__", type(function).__name__)
    refused = globals()["without"]  # the argument has the function's name

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True  # a student's traceback in Jupyter shows the check and the student's code
        try:
            given = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise Mistake(f"{name} does not take the arguments of the exercise: {error}") from None
        before = {key: _content(value) for key, value in given.items()}
        try:
            with refused(*without):
                result = function(*args, **kwargs)
        except AnswerUsedError:
            raise
        except Exception as error:
            if isinstance(error, NotImplementedError) and not error.args:
                raise Mistake(
                    f"{name} is not written yet: replace `raise NotImplementedError()` by your code, run that cell,"
                    " then this one"
                ) from None
            error.add_note(
                f"{name} was called with "
                + (", ".join(f"{key} = {_described(value)}" for key, value in given.items()) or "no arguments")
            )
            raise
        for key, value in given.items():
            if _content(value) != before[key]:
                one = isinstance(value, torch.Tensor | np.ndarray)
                how = "x = x - 1 makes one, x -= 1 does not" if one else f"copy.deepcopy({key}) makes one"
                raise Mistake(f"{name} changes its argument {key}: work on a copy ({how})")
        if result is None:
            raise Mistake(f"{name} returns None: does it end with `return`?")
        return result

    return call


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Refuse functions for a while: a call of one of them, by whatever name or through whatever other function, fails.

    Args:
        *names: functions or classes, such as "similarity.cka" for one of labutils, else "torch.optim.SGD".

    Raises:
        ValueError: there is no such function or class, or it is not written in Python.
        AnswerUsedError: inside, by a call of one of them.

    Example:
        >>> from labutils import models
        >>> with without("models.count_parameters"):
        ...     models.count_parameters(nn.Linear(3, 2))
        Traceback (most recent call last):
        labutils.exercise.AnswerUsedError: this exercise asks you to write what models.count_parameters does: do not \
call it, nor what is built on it
    """
    with ExitStack() as stack:
        for name in names:
            stack.callback(_REFUSED.remove, name)
            _REFUSED.append(name)
            target = _find(name)
            if isinstance(target, type):
                stack.enter_context(mock.patch.object(target, "__init__", _refused))
                continue
            # Every reference to a function sees a change of its code: imports by another name, tables, wrappers.
            function = inspect.unwrap(target)
            if not isinstance(function, FunctionType) or function.__closure__:
                raise ValueError(f"cannot refuse {name}: it is neither a class nor a plain function written in Python")
            stack.callback(setattr, function, "__code__", function.__code__)
            function.__code__ = _refused.__code__
        yield


def _refused(*_args: Any, **_kwargs: Any) -> None:
    from labutils import exercise  # this code may run with the globals of another module

    names = " or ".join(exercise._REFUSED)
    raise exercise.AnswerUsedError(
        f"this exercise asks you to write what {names} does: do not call it, nor what is built on it"
    )


def _find(name: str) -> Any:
    for whole in (f"labutils.{name}", name):
        try:
            return pkgutil.resolve_name(whole)
        except (ImportError, AttributeError, ValueError):
            continue
    raise ValueError(f"there is no {name}, neither in labutils nor elsewhere: a name such as 'similarity.cka' is meant")


def _content(value: Any) -> Any:
    """Return what can change in an argument, as something that == compares."""
    match value:
        case torch.Tensor():
            plain = value.detach().cpu().resolve_conj().resolve_neg().flatten().contiguous()
            return value.shape, value.dtype, plain.view(torch.uint8).numpy().tobytes()
        case np.ndarray():
            return value.shape, value.dtype, value.tobytes()
        case nn.Module():
            return _content(value.state_dict())
        case Mapping():
            return {key: _content(part) for key, part in value.items()}
        case list() | tuple():
            return [_content(part) for part in value]
    return None


def _described(value: Any) -> str:
    match value:
        case torch.Tensor() | np.ndarray():
            return f"{type(value).__name__} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        case nn.Module():
            return f"a network ({type(value).__name__})"
        case list() | tuple() if any(isinstance(part, torch.Tensor | np.ndarray) for part in value):
            more = f" and {len(value) - 4} more" if len(value) > 4 else ""
            return f"a {type(value).__name__} of [{', '.join(map(_described, value[:4]))}]{more}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


# --- Comparing its result -----------------------------------------------------------------------------------------


def compare(
    got: Any,
    expected: Any,
    what: str = "the result",
    *,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    causes: Mapping[str, Any] | None = None,
    hint: str = "",
) -> None:
    """Check a result against the right one; the error says what differs, where first, and why probably.

    A likely cause is one that explains the numbers: the wrong result is what that mistake would give. Tried are the
    causes of the exercise, then common ones.

    Args:
        got: what the student's function returned: numbers, an array, a tensor, or where `expected` is one a list,
            tuple or dict of these.
        expected: the right result.
        what: its name in the message, with the case at hand ("CKA of 30 × 4 and 30 × 7").
        rtol, atol: largest difference that counts as equal, relative to the right number and absolute.
        causes: {what is probably wrong: the result that this mistake gives}.
        hint: a sentence for the end of the message if no cause explains the numbers.

    Raises:
        Mistake: the result is not the right one.
        ValueError: there is NaN in what is expected: nothing equals it, so the check is wrong.

    Example:
        >>> compare(0.5, 0.25, "the loss of 8 examples", causes={"the square is missing": 0.5})
        Traceback (most recent call last):
        labutils.exercise.Mistake: the loss of 8 examples: 0.5, expected 0.25. Likely cause: the square is missing.
        >>> compare(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 2.0]))
        Traceback (most recent call last):
        labutils.exercise.Mistake: the result: first wrong entry [1]: -2, expected 2 (1 of 2 entries is wrong).
    """
    __tracebackhide__ = True
    if isinstance(expected, Mapping | list | tuple):
        for mine, right, name in _entries(got, expected, what):
            compare(mine, right, name, rtol=rtol, atol=atol, hint=hint)
        return
    same_form(got, expected, what)
    right, mine = _numbers(expected, what), _numbers(got, what)
    wide = np.result_type(mine, right, np.float64)
    mine, right = mine.astype(wide), right.astype(wide)
    if np.isnan(right).any():
        raise ValueError(f"{what}: there is NaN in what is expected, and no result equals that: mend the check")
    wrong = ~np.isclose(mine, right, rtol=rtol, atol=atol)
    if not wrong.any():
        return
    lost = ~np.isfinite(mine) & np.isfinite(right)
    at = tuple(int(i) for i in np.argwhere(lost if lost.any() else wrong)[0])
    values = "{}, expected {}".format(*_apart(mine[at], right[at]))
    count = int(wrong.sum())
    share = f"{count} of {wrong.size} entries {'is' if count == 1 else 'are'} wrong"
    message = f"{what}: first wrong entry {list(at)}: {values} ({share})." if at else f"{what}: {values}."
    if lost.any():
        cause = "a division by 0, the logarithm or root of a number below 0, or an overflow"
    else:
        cause = _likely(mine, right, causes or {}, rtol, atol)
    raise Mistake(message + (f" Likely cause: {cause}." if cause else hint and f" {hint}"))


def same_form(got: Any, like: Any, what: str = "the result") -> None:
    """Check the shape and the kind (whole, real, complex) of a result whose numbers are free, against an example of it.

    Raises:
        Mistake: it has another shape, is no array, or holds another kind of numbers.

    Example:
        >>> same_form(torch.ones(3, 1), torch.ones(3), "the labels")
        Traceback (most recent call last):
        labutils.exercise.Mistake: the labels: shape (3, 1), expected (3,): an axis of length 1 is too many or missing.
    """
    __tracebackhide__ = True
    right, mine = _numbers(like, what), _numbers(got, what)
    if mine.shape != right.shape:
        raise Mistake(f"{what}: shape {mine.shape}, expected {right.shape}{_about_shapes(mine, right)}")
    if right.dtype.kind in "bui" and mine.dtype.kind in "fc":
        raise Mistake(f"{what}: numbers of type {mine.dtype}, expected whole ones ({right.dtype}).")
    if mine.dtype.kind == "c" and right.dtype.kind != "c":
        raise Mistake(f"{what}: complex numbers, expected real ones.")


def _entries(got: Any, expected: Any, what: str) -> Iterator[tuple[Any, Any, str]]:
    """Yield the entries of a dict, list or tuple with the right ones and their names."""
    __tracebackhide__ = True
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping):
            raise Mistake(f"{what} is {_kind(got)}, expected a dict with the keys {list(expected)}.")
        if missing := [key for key in expected if key not in got]:
            raise Mistake(f"{what} lacks the keys {missing}; it has {list(got)}.")
        if extra := [key for key in got if key not in expected]:
            raise Mistake(f"{what} has keys that do not belong there: {extra}.")
        yield from ((got[key], value, f"{what}[{key!r}]") for key, value in expected.items())
        return
    if not isinstance(got, list | tuple):
        raise Mistake(f"{what} is {_kind(got)}, expected a {type(expected).__name__} of {_entries_in(expected)}.")
    if len(got) != len(expected):
        raise Mistake(f"{what} has {_entries_in(got)}, expected {len(expected)}.")
    yield from ((mine, right, f"{what}[{i}]") for i, (mine, right) in enumerate(zip(got, expected, strict=True)))


def _entries_in(value: Sequence[Any]) -> str:
    return "1 entry" if len(value) == 1 else f"{len(value)} entries"


def _kind(value: Any) -> str:
    if value is None:
        return "None (is a `return` missing?)"
    if inspect.isroutine(value):
        return f"the function {value.__name__} (are its parentheses missing?)"
    return f"a {type(value).__name__}"


def _numbers(value: Any, what: str) -> np.ndarray:
    __tracebackhide__ = True
    try:
        numbers = np.asarray(_plain(value))
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths
        shapes = f": {_described(value)}" if isinstance(value, list | tuple) else ""
        raise Mistake(
            f"{what} is {_kind(value)} that does not make an array{shapes}; return one tensor or array."
        ) from None
    if numbers.dtype.kind not in "buifc":
        raise Mistake(f"{what} is {_kind(value)}, expected numbers.")
    return numbers


def _plain(value: Any) -> Any:
    """Return tensors, also those in lists, as arrays."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu().resolve_conj().resolve_neg()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # numpy has no bfloat16


def _about_shapes(mine: np.ndarray, right: np.ndarray) -> str:
    if right.ndim == 0:
        return ", a single number: is a sum, mean or norm missing?" if mine.size > 1 else ": take its only entry."
    if mine.ndim == 0:
        return ": is it reduced to one number too early?"
    if mine.shape == right.shape[::-1]:
        return ": transposed?"
    if mine.squeeze().shape == right.squeeze().shape:
        return ": an axis of length 1 is too many or missing."
    if mine.size == right.size:
        return ": the same number of entries, so reshape it, or keep it from being flattened."
    return "."


def _apart(got: Any, expected: Any) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart."""
    for digits in (6, 9, 17):
        texts = f"{got:.{digits}g}", f"{expected:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def _likely(mine: np.ndarray, right: np.ndarray, causes: Mapping[str, Any], rtol: float, atol: float) -> str | None:
    """The first mistake that would give just this result."""
    if not np.isfinite(mine).all() or not np.isfinite(right).all():
        return None
    near = max(rtol, _HYPOTHESIS)
    floor = max(atol, near * float(np.abs(right).max()) * 1e-2)

    def alike(a: np.ndarray, b: np.ndarray) -> bool:
        return a.shape == b.shape and np.allclose(a, b, rtol=near, atol=floor)

    def explains(value: Any) -> bool:
        value = np.asarray(_numbers(value, "a cause"), dtype=mine.dtype)
        return alike(mine, value) and not alike(value, right)  # what hardly differs from the right one explains nothing

    for cause, value in causes.items():
        if explains(value):
            return cause
    if not mine.any():
        return "the result is never filled in, all is 0" if mine.ndim else None
    for cause, value in _common_mistakes(mine, right):
        if explains(value):
            return cause
    if alike(mine, right):
        return "too few digits, as of float32" if np.allclose(mine, right, rtol=1e-5, atol=0) else None
    if right.size > 1 and alike(np.sort(mine, None), np.sort(right, None)):
        return "the right numbers in another order"
    return None


def _common_mistakes(mine: np.ndarray, right: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield mistakes with what they make of the right result."""
    yield "the sign", -right
    if right.ndim == 2 and right.shape[0] == right.shape[1]:
        yield "transposed", right.T
    if right.ndim:
        yield "the order is reversed", np.flip(right, 0)
        yield "the columns are in reversed order", np.flip(right, -1)
    if right.dtype.kind == "c":
        return
    yield "rounded to whole numbers", np.round(right)
    yield "cut to whole numbers", np.trunc(right)
    if (right >= 0).all():
        yield "squared once too often", right**2
        yield "a root too many, or a square is missing", np.sqrt(right)
    every = "all " if right.ndim else ""
    at = np.unravel_index(np.abs(right).argmax(), right.shape)
    if right[at] and mine[at]:
        ratio = mine[at] / right[at]
        times = max(abs(ratio), 1 / abs(ratio))
        nice = times < _FACTORS and abs(times - round(times)) < _HYPOTHESIS * times
        # Any two single numbers have some ratio: only one that a mistake is likely to give says something.
        if nice or right.size > 2:
            size = "large" if abs(ratio) > 1 else "small"
            number = f"{round(times)}" if nice else f"{times:.4g}"
            sign = " and of the other sign" if ratio < 0 else ""
            yield f"a factor: {every}{number} times too {size}{sign}", ratio * right
    shift = (mine - right).flat[0]
    if right.size > 2 or abs(shift) in (1.0, 2.0):
        yield f"a constant: {every}off by {shift:+.4g}", right + shift
