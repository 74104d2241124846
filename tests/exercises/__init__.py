"""What the exercises of all notebooks are tried with: `test_exercises` does so, with the answers of each notebook here.

An exercise is a solution cell and the check cells behind it. Both work with three things alone: the parameters, the
set-up cell (the one that begins the record) and locked cells of the exercise. So a grade needs no training.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import nbformat
from nbformat import NotebookNode

from tests.conftest import ROOT

NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def nbgrader_of(cell: NotebookNode) -> NotebookNode:
    return cell.metadata.get("nbgrader", {})


def exercise_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return what runs when a notebook is graded."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        cell
        for cell in code
        if nbgrader_of(cell) or "parameters" in cell.metadata.get("tags", ()) or "record.start(" in cell.source
    ]


def exercises_of(name: str) -> Iterator[tuple[NotebookNode, list[NotebookNode]]]:
    """Each exercise of a notebook, with its checks."""
    solution, checks = None, []
    for cell in NOTEBOOKS[name].cells:
        if cell.cell_type != "code":  # an answer in words, graded by a person
            continue
        if nbgrader_of(cell).get("solution"):
            if solution:
                yield solution, checks
            solution, checks = cell, []
        elif nbgrader_of(cell).get("grade"):
            checks.append(cell)
    assert solution
    yield solution, checks


EXERCISES = {
    nbgrader_of(solution)["grade_id"]: (name, solution, checks)
    for name in NOTEBOOKS
    for solution, checks in exercises_of(name)
}


class Desk:
    """A notebook's exercise, on which answers are tried."""

    def __init__(self, key: str) -> None:
        name, self.solution, self.checks = EXERCISES[key]
        self.names: dict[str, Any] = {"__name__": "__main__"}
        for cell in exercise_cells(NOTEBOOKS[name]):
            if not nbgrader_of(cell).get("grade"):
                exec(compile(cell.source, cell.id, "exec"), self.names)
        [self.function] = re.findall(r"(?m)^def (\w+)", self.solution.source)
        self.right = self.names[self.function]

    def check(self, answer: Callable[..., Any]) -> None:
        names = self.names | {self.function: answer}
        for cell in self.checks:
            exec(compile(cell.source, cell.id, "exec"), names)

    def check_text(self, source: str) -> None:
        names = self.names.copy()
        exec(compile(source, "answer", "exec"), names)
        self.check(names[self.function])

    def derived(self, change: Callable[[Any], Any]) -> Callable[..., Any]:
        """The right function, whose result is changed."""
        return functools.wraps(self.right)(lambda *args, **kwargs: change(self.right(*args, **kwargs)))


def answers(what: str) -> list[tuple[str, ...]]:
    """Return all notebooks' lists of that name: MISTAKES, RIGHT or, where there is one, REFUSED."""
    modules = [importlib.import_module(f"tests.exercises.answers_{name[:2]}") for name in NOTEBOOKS]
    return [answer for module in modules for answer in getattr(module, what, [])]
