"""What holds for the two packages as a whole: who imports whom, docstrings with examples that run, types."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import labutils

ROOT = Path(labutils.__file__).parents[1]
# From the ground up: a module may import those before it, never one after it; the command comes after all of labutils.
SCIENCE = (
    "files",
    "parameters",
    "identity",
    "fingerprint",
    "functions",
    "data",
    "models",
    "optim",
    "backprop",
    "checkpoint",
    "distribute",
    "loops",
    "fused",
    "stack",
    "engine",
    "training",
    "representations",
    "statistics",
    "curvature",
    "landscape",
    "kernels",
    "similarity",
    "claims",
    "published",
    "drawing",
    "slider",
    "plotting",
    "record",
    "exercise",
)
COMMAND = (
    "freshness",
    "jupyter",
    "runner",
    "cost",
    "progress",
    "cluster",
    "pages",
    "teaching",
    "submission",
    "check",
    "release",
    "site",
    "publish",
    "fence",
    "grading",
    "doctor",
    "cli",
)
ORDER = (*(f"labutils.{name}" for name in SCIENCE), *(f"labs.{name}" for name in COMMAND))
each_module = pytest.mark.parametrize("name", ORDER)


def public(name: str) -> list:
    """The functions and classes that a module defines for others."""
    module = importlib.import_module(name)
    return [
        thing
        for key, thing in vars(module).items()
        if not key.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module.__name__
    ]


def test_every_module_has_its_place() -> None:
    for package, modules in (("labutils", SCIENCE), ("labs", COMMAND)):
        assert {path.stem for path in (ROOT / package).glob("*.py")} == {*modules, "__init__"}


@each_module
def test_imports_run_downwards(name: str) -> None:
    tree, used = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text()), set()
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in set(ast.walk(tree)) - {inner for check in checks for inner in ast.walk(check)}:
        match node:
            case ast.ImportFrom(module="labutils" | "labs" as package, names=names):
                used |= {f"{package}.{alias.name}" for alias in names}
            case ast.ImportFrom(module=str() as module) if module.partition(".")[0] in ("labutils", "labs"):
                used.add(module)
    assert used - {"labutils.__version__", name} <= set(ORDER[: ORDER.index(name)])


@each_module
def test_examples_in_docstrings_run(name: str, monkeypatch) -> None:
    monkeypatch.delenv("LABUTILS_RUN_DIR", raising=False)
    monkeypatch.delenv("LABUTILS_RUN", raising=False)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", [f"labutils.{name}" for name in SCIENCE])
def test_what_notebooks_call_has_an_example_and_types(name: str) -> None:
    for thing in public(name):
        assert thing.__doc__, f"{name}.{thing.__name__} has no docstring"
        if inspect.isfunction(thing):
            assert ">>>" in thing.__doc__, f"{name}.{thing.__name__} has no example"
            signature = inspect.signature(thing)
            untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
            assert not untyped, f"{name}.{thing.__name__}: no types for {untyped}"
            assert signature.return_annotation is not signature.empty, f"{name}.{thing.__name__} returns what?"
