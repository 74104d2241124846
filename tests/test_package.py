"""What holds for the module as a whole: who imports whom, docstrings with examples that run, types."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import labutils

FOLDER = Path(labutils.__file__).parent
# The plan's order, from the ground up: a module may import those before it, never one after it.
ORDER = (
    "files",
    "identity",
    "functions",
    "data",
    "models",
    "optim",
    "backprop",
    "checkpoint",
    "distribute",
    "stack",
    "training",
    "representations",
    "statistics",
    "curvature",
    "landscape",
    "kernels",
    "similarity",
    "claims",
    "published",
    "plotting",
    "record",
    "exercise",
    "runner",
    "cost",
    "cluster",
    "site",
    "publish",
    "release",
    "doctor",
    "cli",
)
each_module = pytest.mark.parametrize("name", ORDER)


def public(name: str) -> list:
    """The functions and classes that a module defines for others."""
    module = importlib.import_module(f"labutils.{name}")
    return [
        thing
        for key, thing in vars(module).items()
        if not key.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module.__name__
    ]


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*ORDER, "__init__"}


@each_module
def test_imports_run_downwards(name: str) -> None:
    used = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("labutils"):
            below = node.module.removeprefix("labutils").removeprefix(".")
            used |= {below} if below else {alias.name for alias in node.names}
    assert used - {"__version__"} <= set(ORDER[: ORDER.index(name)])


@each_module
def test_examples_in_docstrings_run(name: str, monkeypatch) -> None:
    monkeypatch.delenv("LABUTILS_RUN_DIR", raising=False)
    monkeypatch.delenv("LABUTILS_RUN", raising=False)
    assert doctest.testmod(importlib.import_module(f"labutils.{name}")).failed == 0


@pytest.mark.parametrize("name", ORDER[: ORDER.index("runner")])
def test_what_notebooks_call_has_an_example_and_types(name: str) -> None:
    for thing in public(name):
        assert thing.__doc__, f"{name}.{thing.__name__} has no docstring"
        if inspect.isfunction(thing):
            assert ">>>" in thing.__doc__, f"{name}.{thing.__name__} has no example"
            signature = inspect.signature(thing)
            untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
            assert not untyped, f"{name}.{thing.__name__}: no types for {untyped}"
            assert signature.return_annotation is not signature.empty, f"{name}.{thing.__name__} returns what?"
