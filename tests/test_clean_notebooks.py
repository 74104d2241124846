"""The notebook cleaner: what git keeps of an executed notebook."""

from __future__ import annotations

import runpy
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests.conftest import ROOT

clean = runpy.run_path(str(ROOT / "tools" / "clean_notebooks.py"))["main"]


def executed_notebook() -> NotebookNode:
    """A notebook as Jupyter saves it after its cells ran out of order."""
    printed = new_output("stream", text="397\n")
    value = new_output("execute_result", {"text/plain": "385"}, execution_count=17)
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("n = 3", metadata={"tags": ["parameters"], "scrolled": True}, execution_count=15),
        new_code_cell("print(n)", outputs=[printed], execution_count=16, metadata={"execution": {"started": "now"}}),
        new_code_cell(
            "print(397)\n385", outputs=[printed, value], execution_count=17, metadata={"tags": ["nbval-check-output"]}
        ),
        new_code_cell("answer()", metadata={"nbgrader": {"grade_id": "answer"}}, execution_count=18),
    ]
    return new_notebook(cells=cells, metadata={"language_info": {"name": "python", "version": "3.11.2"}})


def test_only_checked_tables_keep_outputs_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notebook.ipynb"
    before = executed_notebook()
    nbformat.write(before, path)
    clean([str(path)])
    assert capsys.readouterr().out == "cleaned notebook.ipynb\n"
    after = nbformat.read(path, as_version=4)
    parameters, printed, table, exercise = after.cells[1:]
    for cell in (parameters, printed, exercise):
        assert (cell.outputs, cell.execution_count) == ([], None)
    assert table.execution_count == 3  # its place among the code cells
    assert [output.output_type for output in table.outputs] == ["stream", "execute_result"]
    assert table.outputs[1].data == {"text/plain": "385"}
    assert table.outputs[1].execution_count == 3
    assert [cell.id for cell in after.cells] == [cell.id for cell in before.cells]
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert parameters.metadata == {"tags": ["parameters"]}
    assert printed.metadata == {}
    assert exercise.metadata == {"nbgrader": {"grade_id": "answer"}}
    assert after.metadata.language_info == {"name": "python"}
    once = path.read_bytes()
    clean([str(path)])
    assert (path.read_bytes(), capsys.readouterr().out) == (once, "")
