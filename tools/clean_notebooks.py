"""Clean notebooks for git: no outputs, except the tables that nbval checks.

nbstripout alone keeps or removes the execution counts of all cells alike, but nbval compares nothing in a cell
without a count, so cells tagged nbval-check-output must keep theirs and all others must lose them.

    python tools/clean_notebooks.py [FILE …]        without names, every notebook of the lab
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbstripout import strip_output

CHECKED = "nbval-check-output"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
NOISE = ["collapsed", "execution", "heading_collapsed", "jupyter", "papermill", "scrolled", "trusted"]


def clean(notebook: NotebookNode) -> NotebookNode:
    """Remove, in place, what differs from run to run and from machine to machine.

    Args:
        notebook: a notebook of format 4.

    Returns:
        The notebook. Cells tagged nbval-check-output keep their outputs; their count becomes their place among the
        code cells, which is what a run from top to bottom gives. Cell ids stay.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tables = {
        number: cell.outputs
        for number, cell in enumerate(code, start=1)
        if CHECKED in cell.metadata.get("tags", []) and cell.outputs
    }
    keys = [f"cell.metadata.{name}" for name in NOISE]
    strip_output(notebook, keep_output=False, keep_count=False, keep_id=True, extra_keys=keys)
    for number, outputs in tables.items():
        code[number - 1].outputs = outputs
        code[number - 1].execution_count = number
        for output in outputs:
            if "execution_count" in output:
                output.execution_count = number
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def main(names: list[str]) -> None:
    """Clean the named notebooks, or all; rewrite only those that change."""
    folder = Path(__file__).resolve().parents[1] / "notebooks"
    for path in [Path(name) for name in names] or sorted(folder.glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        after = nbformat.writes(clean(nbformat.reads(before, as_version=4))) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"cleaned {path.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
