"""labutils.parameters: what a parameters cell allows, for the command, papermill and a person alike."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labutils import parameters

CELL = """
epochs = 10  # passes through the training images (>= 1); D4: 50
noise = 0.2  # share of wrong labels (>= 0, <= 1)
source = "digits"  # the images ("digits" | "mnist")
rates: list = [0.1, 0.01]  # learning rates (> 0)
batch = {"d1": 10, "d2": 20}  # images a step (>= 1)
extra = [
    0.5,
]  # further rates (> 0, may be empty)
trials = {"one": {"lr": 0.1, "fit": {}}, "two": {"lr": 0.3, "fit": {}, "size": 8}}  # by name (> 0)
n_train = None  # training images (>= 1); None takes all
device = "cpu"  # "cpu" or "cuda" (as everywhere)
"""


@pytest.mark.parametrize(
    ("name", "good", "bad", "needed"),
    [
        ("epochs", [1, 50], [0, -3], "be >= 1"),
        ("noise", [0, 1.0], [-0.1, 1.5, float("nan")], "be >= 0 and <= 1"),
        ("source", ["mnist"], ["mnits", ""], 'be "digits" or "mnist"'),
        ("rates", [[1e-3]], [[0.1, 0.0]], "be > 0"),
        ("rates", [(1,)], [[], ()], "not be empty"),
        ("batch", [{"d1": 1}, {}], [{"d1": 10, "d2": 0}, {"d1": [1, 0]}], "be >= 1"),
        ("batch", [], [{"d1": 10, "d2": []}], "not hold an empty list"),
        ("extra", [[], [1.0], [[]]], [[0]], "be > 0"),
        ("trials", [{"a": {"lr": 1, "fit": {}}}], [{}, []], "not be empty"),
        ("trials", [], [{"a": {"lr": 1}}], "have 'fit' in 'a'"),
        ("trials", [], [{"a": 1}], "have 'lr' in 'a'"),
        ("trials", [], [{"a": {"lr": 0, "fit": {}}}], "be > 0"),
        ("n_train", [None, 1], [0], "be >= 1"),
        ("device", ["tpu"], [], ""),
    ],
)
def test_what_a_comment_allows(name: str, good: list, bad: list, needed: str) -> None:
    declared = parameters.read(CELL)
    for value in good:
        parameters.check(declared, {name: value, "other": 0})
    for value in bad:
        with pytest.raises(ValueError, match=re.escape(f"11: {name} = {value!r} is not allowed: it must {needed}")):
            parameters.check(declared, {name: value}, where="11: ")


def test_defaults_comments_and_types_are_read() -> None:
    declared = parameters.read(CELL)
    assert list(declared)[:2] == ["epochs", "noise"]
    assert declared["batch"].default == {"d1": 10, "d2": 20}
    assert declared["extra"].comment == "further rates (> 0, may be empty)"
    assert declared["device"].bounds == declared["device"].choices == ()


@pytest.mark.parametrize(
    "cell", ["n = 2 * 3", "n = m = 1", "import os", "n = ", "%matplotlib inline", "n = 1 # (>= 1, x)"]
)
def test_what_is_no_plain_value_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parameters.read(cell)


@given(text=st.text(alphabet='<|,. 1"ab)', max_size=30))
def test_other_words_in_a_comment_are_for_people(text: str) -> None:
    assert parameters.read(f"n = 1  # {text}")["n"].bounds == ()


def test_the_variables_of_a_notebook_are_compared_with_its_first_cell_of_values() -> None:
    cells = ["", "import math", CELL, "# Parameters\nepochs = 0\n"]
    allowed = {name: one.default for name, one in parameters.read(CELL).items()}
    parameters.check_cells({"In": cells, **allowed})
    with pytest.raises(ValueError, match="epochs = 0 is not allowed: it must be >= 1"):
        parameters.check_cells({"In": cells, **allowed, "epochs": 0})
    parameters.check_cells({"epochs": 0})  # no notebook
