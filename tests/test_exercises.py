"""Every exercise: what its checks say to no answer, to typical wrong ones, and to right ones."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labutils import exercise
from labutils.claims import Claim
from labutils.exercise import AnswerUsedError, Mistake
from tests.exercises import EXERCISES, NOTEBOOKS, Desk, answers, exercise_cells, nbgrader_of

LEVELS = ("warm-up", "core", "challenge")
each_exercise = pytest.mark.parametrize("key", list(EXERCISES))


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Desk]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABUTILS_RUN_DIR", str(tmp_path_factory.mktemp("run")))
        yield functools.cache(Desk)


def zeros(result: Any) -> Any:
    match result:
        case torch.Tensor():
            return torch.zeros_like(result)
        case np.ndarray():
            return np.zeros_like(result)
        case dict():
            return {key: zeros(value) for key, value in result.items()}
        case list() | tuple():
            return type(result)(map(zeros, result))
        case nn.Module():
            nn.utils.vector_to_parameters(torch.zeros(sum(p.numel() for p in result.parameters())), result.parameters())
            return result
        case torch.optim.Optimizer():
            return torch.optim.SGD(result.param_groups[0]["params"], lr=0.0)
        case Claim():
            return dataclasses.replace(result, measured=zeros(result.measured))
    return type(result)(0)


def misshapen(result: Any) -> Any:
    match result:
        case torch.Tensor():
            return result.unsqueeze(0)
        case np.ndarray():
            return result.T if result.ndim > 1 else result[None]
        case dict():
            return dict(list(result.items())[1:])
        case list() | tuple():
            return result[:-1] if isinstance(result, list) else result[0]
        case nn.Module():
            return nn.Linear(2, 2)
        case torch.optim.Optimizer():
            return result.param_groups
    return [result, result]


# --- What the checks say ------------------------------------------------------------------------------------------


@each_exercise
def test_the_right_answer_passes(key: str, desks: Callable[[str], Desk]) -> None:
    desks(key).check(desks(key).right)


@each_exercise
def test_what_is_not_written_yet_is_called_so(key: str, desks: Callable[[str], Desk]) -> None:
    source = re.sub(
        r"(?s)### BEGIN SOLUTION.*### END SOLUTION", "raise NotImplementedError()", desks(key).solution.source
    )
    with pytest.raises(Mistake, match=f"^{desks(key).function} is not written yet: replace"):
        desks(key).check_text(source)


@each_exercise
def test_none_zeros_and_wrong_shapes_are_explained(key: str, desks: Callable[[str], Desk]) -> None:
    desk = desks(key)
    with pytest.raises(Mistake, match=f"^{desk.function} returns None: does it end with `return`"):
        desk.check(desk.derived(lambda result: None))
    with pytest.raises(AssertionError, match=r": (first wrong entry|-?\d).*, expected .*\d") as error:
        desk.check(desk.derived(zeros))
    assert re.search("0, expected|wrong ones among|after three steps", str(error.value))
    with pytest.raises(AssertionError, match=r"shape \(|lacks the keys|your list has|^return ") as error:
        desk.check(desk.derived(misshapen))
    assert re.search(r"expected|not a|has|return three|return two", str(error.value))


ANSWERED = {
    key: answer
    for key, (_, _, checks) in EXERCISES.items()
    for check in checks
    for answer in re.findall(
        r'"((?:torch\.)?\w+\.\w+)"', "".join(re.findall(r"(?s)attempt\(\s*\w+,(.*?)\)", check.source))
    )
}


@pytest.mark.parametrize("key", list(ANSWERED))
def test_the_answer_of_labutils_cannot_be_handed_in(key: str, desks: Callable[[str], Desk]) -> None:
    def borrowed(*args: Any, **kwargs: Any) -> Any:
        return exercise._find(ANSWERED[key])(*args, **kwargs)

    borrowed.__signature__ = inspect.signature(desks(key).right)  # type: ignore[attr-defined]
    with pytest.raises(AnswerUsedError, match=r"this exercise asks you to write what .* does: do not call it"):
        desks(key).check(borrowed)


@pytest.mark.parametrize(("key", "old", "new", "words"), answers("MISTAKES"))
def test_a_typical_mistake_is_named(key: str, old: str, new: str, words: str, desks: Callable[[str], Desk]) -> None:
    source = desks(key).solution.source
    assert old in source
    with pytest.raises(AssertionError, match=words):
        desks(key).check_text(source.replace(old, new))


@pytest.mark.parametrize(("key", "source"), answers("RIGHT"))
def test_a_right_answer_in_other_words_passes(key: str, source: str, desks: Callable[[str], Desk]) -> None:
    desks(key).check_text(source)


@pytest.mark.parametrize(("key", "source"), answers("REFUSED"))
def test_what_an_exercise_does_without_is_refused(key: str, source: str, desks: Callable[[str], Desk]) -> None:
    with pytest.raises(AnswerUsedError, match="this exercise asks you to write what"):
        desks(key).check_text(source)


# --- Their form ---------------------------------------------------------------------------------------------------


@each_exercise
def test_an_exercise_is_complete(key: str) -> None:
    name, solution, checks = EXERCISES[key]
    about = solution.metadata.get("exercise", {})
    assert about.get("difficulty") in LEVELS, f"{name}, {key}: metadata.exercise.difficulty is one of {LEVELS}"
    assert isinstance(about.get("minutes"), int), f"{name}, {key}: metadata.exercise.minutes is missing"
    assert any("### BEGIN HIDDEN TESTS" in check.source for check in checks), f"{name}, {key}: no hidden test"


def test_every_exercise_is_tried() -> None:
    tried = {what: Counter(key for key, *_ in answers(what)) for what in ("MISTAKES", "RIGHT")}
    few = [key for key in EXERCISES if tried["MISTAKES"][key] < 3 or tried["RIGHT"][key] < 2]
    assert few == [], "three wrong answers and two right ones are needed"
    exercises_of_notebook = Counter(name for name, _, _ in EXERCISES.values())
    assert all(exercises_of_notebook[name] >= 2 for name in NOTEBOOKS), "two exercises a notebook"
    assert all(checks for _, _, checks in EXERCISES.values())
    assert len(ANSWERED) > 10


def test_the_cells_that_make_the_cases_are_locked() -> None:
    """So that grading uses the originals."""
    for name, notebook in NOTEBOOKS.items():
        for cell in exercise_cells(notebook):
            if nbgrader_of(cell):
                assert nbgrader_of(cell)["locked"] != nbgrader_of(cell)["solution"], f"{name}, {cell.id}"
