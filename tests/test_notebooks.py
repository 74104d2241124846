"""Every notebook: its form in git, its quick run through papermill, its checked tables through nbval.

A notebook is executed once a session: what papermill leaves is compared as nbval does, and shown on the site.
"""

from __future__ import annotations

import ast
import copy
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbval.plugin import IPyNbCell, coalesce_streams, nocolors

from labs import runner
from labs.runner import Project, Result
from tests.conftest import ROOT, TinyLab

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECKED = "nbval-check-output"
MOST_LINES = 35
SKIPPED = ("metadata", "execution_count", "output_type", "name")  # of an output, as nbval skips them

each_notebook = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def comment_lines(source: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def python(cell: NotebookNode) -> ast.Module:
    return ast.parse(TransformerManager().transform_cell(cell.source))


# --- In git ------------------------------------------------------------------------------------------------------


def test_there_are_notebooks_and_the_named_runs_fit_them() -> None:
    assert PATHS
    notebooks = runner.load_notebooks(Project(ROOT))  # checks every name and value in runs.yaml
    assert list(notebooks) == [path.stem for path in PATHS]
    for notebook in notebooks.values():
        assert notebook.title != notebook.name, f"{notebook.name} has no heading"
        assert notebook.question.endswith("?"), f"{notebook.name} does not begin with its question"


@each_notebook
def test_the_parameters_are_plain_values_with_a_comment_each(path: Path) -> None:
    cells = [cell for cell in read(path).cells if "parameters" in tags(cell)]
    assert len(cells) == 1
    [cell] = cells
    assert cell == code_cells(read(path))[0], "the parameters cell is the first code cell"
    commented = comment_lines(cell.source)
    for node in ast.parse(cell.source).body:
        assert commented & set(range(node.lineno, node.end_lineno + 1)), f"no comment at: {ast.unparse(node)}"


@each_notebook
def test_only_checked_tables_have_outputs(path: Path) -> None:
    for number, cell in enumerate(read(path).cells, start=1):
        if cell.cell_type != "code":
            continue
        if CHECKED in tags(cell):
            assert cell.execution_count is not None, f"cell {number}: nbval compares nothing without a count"
            assert cell.outputs, f"cell {number} has no output to check"
            kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
            assert kinds <= {"text/plain"}, f"cell {number}: only text is the same on any machine"
        else:
            assert cell.outputs == [], f"cell {number} has outputs: clean it"
            assert cell.execution_count is None, f"cell {number} has an execution count: clean it"


@each_notebook
def test_cells_are_short(path: Path) -> None:
    for number, cell in enumerate(read(path).cells, start=1):
        if cell.cell_type == "code" and "parameters" not in tags(cell):
            lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
            assert len(lines) <= MOST_LINES, f"cell {number} has {len(lines)} lines of code"


def test_no_function_is_defined_twice_in_the_collection() -> None:
    places = defaultdict(list)
    for path in PATHS:
        for cell in code_cells(read(path)):
            for node in ast.walk(python(cell)):
                named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                if named and not node.name.startswith("__"):  # every class has its own __init__
                    places[node.name].append(path.stem)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


# --- Through papermill -------------------------------------------------------------------------------------------


@pytest.mark.notebook
@pytest.mark.timeout(900)
@each_notebook
def test_the_quick_run_succeeds_and_is_recorded(path: Path, execute_notebook: Callable[[str], Result]) -> None:
    result = execute_notebook(path.stem)
    assert result.failure is None
    metrics = json.loads((result.folder / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["notebook"], metrics["run"]) == (path.stem, "quick")
    defaults = runner.load_notebooks(Project(ROOT))[path.stem].defaults
    assert metrics["parameters"].items() >= json.loads(json.dumps(defaults)).items()
    assert metrics["figures"]
    for figure in metrics["figures"]:
        assert (result.folder / figure["file"]).read_bytes().startswith(b"\x89PNG")
    for cell in code_cells(read(result.folder / "notebook.ipynb")):
        assert cell.execution_count is not None
        told = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        assert told == [], f"{cell.source.splitlines()[0]} ... writes to standard error"


# --- As nbval compares -----------------------------------------------------------------------------------------------


def differences(executed: NotebookNode, reference: NotebookNode) -> list[str]:
    """The tagged cells whose outputs nbval finds changed in an execution that is there already: their first lines."""
    nbval_cell = SimpleNamespace(
        parent=SimpleNamespace(skip_compare=SKIPPED),
        colors=nocolors,
        sanitize=str,
        format_output_compare=lambda *_: None,
    )
    changed = []
    for found, stored in zip(code_cells(executed), code_cells(reference), strict=True):
        # a busy machine writes what one cell prints in several pieces
        outputs = [coalesce_streams(copy.deepcopy(cell.outputs)) for cell in (found, stored)]
        if CHECKED in tags(stored) and not IPyNbCell.compare_outputs(nbval_cell, *outputs):
            changed.append(stored.source.splitlines()[0])
    return changed


@pytest.mark.notebook
@pytest.mark.timeout(900)
@each_notebook
def test_nbval_finds_the_checked_tables_as_they_are(path: Path, execute_notebook: Callable[[str], Result]) -> None:
    executed, reference = read(execute_notebook(path.stem).folder / "notebook.ipynb"), read(path)
    executed.cells = [cell for cell in executed.cells if "injected-parameters" not in tags(cell)]
    assert differences(executed, reference) == []
    for cell in reference.cells:  # and it would see a digit that changed
        if CHECKED in tags(cell) and any(spoil(output) for output in cell.outputs):
            assert cell.source.splitlines()[0] in differences(executed, reference)


def spoil(output: NotebookNode) -> bool:
    """Change the first digit of an output's text; tell whether there was one."""
    if output.output_type == "stream":
        before = output.text
        output.text = re.sub(r"\d", lambda match: str((int(match[0]) + 1) % 10), before, count=1)
        return output.text != before
    before = output.get("data", {}).get("text/plain", "")
    output["data"]["text/plain"] = re.sub(r"\d", lambda match: str((int(match[0]) + 1) % 10), before, count=1)
    return output["data"]["text/plain"] != before


@pytest.mark.notebook
@pytest.mark.timeout(300)
def test_nbval_itself_agrees(tiny_lab: TinyLab, tmp_path: Path) -> None:
    """`pytest --nbval-lax`, as CONTRIBUTING.md names it, passes a table as it is, and fails a changed one."""
    path = tiny_lab.add("11_table", "print(n)\nn + 1", "n + 2")
    notebook = read(path)
    for number, (cell, value) in enumerate(zip(notebook.cells[-2:], ("4", "6"), strict=True), 2):
        cell.metadata["tags"], cell.execution_count = [CHECKED], number
        cell.outputs = [new_output("execute_result", {"text/plain": value}, execution_count=number)]
    notebook.cells[-2].outputs.insert(0, new_output("stream", text="3\n"))
    nbformat.write(notebook, path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--color=no", "-p", "no:cacheprovider", "-p", "no:xdist", "--nbval-lax"),
            *("-c", tmp_path / "pytest.ini", "--rootdir", tmp_path, "--nbval-current-env", path),
        ],
        # Where CI is set, pytest repeats the whole message in its summary: what is counted below would be there twice.
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("Cell outputs differ") == 1
    assert "1 failed, 2 passed" in done.stdout
