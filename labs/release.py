"""Makes what students get: the notebooks without solutions, and the two packages.

``build`` writes a folder that is complete or not there::

    DIR/README.md, index.ipynb     how to set it up; the notebooks with their questions and points
        environment.yml, requirements.txt, constraints.txt, pyproject.toml
        notebooks/                 *.ipynb as nbgrader's generate_assignment makes them: solutions and hidden tests cut,
                                   outputs cleared, check cells locked; *.yaml with the named runs
        labutils/, labs/           the packages, as they are
        book/results/              what the source runs gave, which the notebooks show
        data/                      data files, if some were given
        originals.zip              the notebooks once more, for `labs check` to compare with
        nbgrader_config.py         how nbgrader grades them (see ``labs.grading``), for the instructor's course folder
        release.json               the points of each check

**Answers in labutils.** Many exercises ask for a function that labutils has, and that the experiments of the same
notebook need. So its text stays, and nothing pretends to hide it. Each check names these functions
(``exercise.attempt(f, without=["similarity.cka"])``), which raise an error while it runs the student's function. A
student can still copy their text: a grade says that the checks passed in the instructor's copy of the notebook.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import jinja2
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from labs import runner, submission
from labs.runner import MANIFEST, LabsError, Notebook, Project
from labutils import __version__

TEMPLATES = Path(__file__).parent / "templates"
REAL_DATA = ("mnist", "fashion_mnist", "cifar10")
_COPIED = ("constraints.txt", "environment.yml", "pyproject.toml", "LICENSE", "LICENSE-TEXT")
_CACHES = shutil.ignore_patterns("__pycache__", "*.pyc")
# nbgrader's steps, in the order of its GenerateAssignment, but for those that need its database or a kernel.
STUDENTS = (
    *("LockCells", "ClearSolutions", "ClearOutput", "CheckCellMetadata", "ComputeChecksums", "ClearHiddenTests"),
    *("ClearMarkScheme", "ComputeChecksums", "CheckCellMetadata"),
)
ANSWERS = ("ClearSolutions", "ClearHiddenTests")


@dataclass(frozen=True)
class Release:
    """A release that was made."""

    folder: Path
    points: dict[str, float]  # of each notebook
    data: tuple[str, ...]  # the data sets that it brings along


def build(project: Project, folder: Path, *, data: Path | None = None) -> Release:
    """Make a release.

    Args:
        project: the lab, with the solutions.
        folder: where the release goes; it must be empty, or not there.
        data: a folder with NAME.npz of real data sets, to be copied into the release.

    Raises:
        LabsError: nbgrader is missing; the folder is in use; the lab is itself a release; a notebook's markers or its
            nbgrader metadata are wrong; there are no data to copy. Nothing is written then.
    """
    if (project.root / MANIFEST).exists():
        raise LabsError(f"{project.root} is itself a release: make one where the solutions are, in the lab")
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LabsError(f"{folder} is there already: move it away, or name another folder")
    files = _find_data(data) if data else {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=runner.PARTIAL, dir=folder.parent))
    try:
        points = _write(project, partial / folder.name, files)
        (partial / folder.name).chmod(0o755)
        os.replace(partial / folder.name, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Release(folder, points, tuple(files))


def _write(project: Project, folder: Path, data: Mapping[str, Path]) -> dict[str, float]:
    """Write the whole release into a new folder; return the points of each notebook."""
    notebooks = runner.load_notebooks(project)
    asked: dict[str, dict[str, float]] = {}
    (folder / "notebooks").mkdir(parents=True)
    with zipfile.ZipFile(folder / submission.ORIGINALS, "w", zipfile.ZIP_DEFLATED) as originals:
        for notebook in notebooks.values():
            whole = nbformat.read(notebook.path, as_version=4)
            asked[notebook.name] = read_points(whole)
            written = folder / "notebooks" / notebook.path.name
            nbformat.write(cut(whole, notebook.name, STUDENTS), written)
            originals.writestr(zipfile.ZipInfo(written.name), written.read_bytes(), zipfile.ZIP_DEFLATED)
    for path in sorted(project.notebooks.glob("*.yaml")):
        shutil.copyfile(path, folder / "notebooks" / path.name)
    shutil.copytree(project.package, folder / project.package.name, ignore=_CACHES)
    for name in ("labs", "book/results"):
        if (project.root / name).is_dir():
            shutil.copytree(project.root / name, folder / name, ignore=_CACHES)
    for name in _COPIED:
        if (project.root / name).is_file():
            shutil.copyfile(project.root / name, folder / name)
    (folder / "requirements.txt").write_text("-c constraints.txt\n-e .\n", encoding="utf-8")
    shutil.copyfile(TEMPLATES / "nbgrader_config.py", folder / "nbgrader_config.py")
    if data:
        (folder / "data").mkdir()
        for name, path in data.items():
            shutil.copyfile(path, folder / "data" / f"{name}.npz")

    table = _table(notebooks, asked)
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), keep_trailing_newline=True)
    readme = templates.get_template("README.md.j2").render(table=table, data=list(data))
    (folder / "README.md").write_text(readme, encoding="utf-8")
    nbformat.write(_index(table), folder / "index.ipynb")
    manifest = {"labutils": __version__, "notebooks": asked}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {name: sum(points.values()) for name, points in asked.items()}


# --- Notebooks ----------------------------------------------------------------------------------------------------


def cut(notebook: NotebookNode, name: str, steps: Sequence[str]) -> NotebookNode:
    """Cut out of a notebook what students do not get, with nbgrader's own steps; return a new one.

    Args:
        steps: `STUDENTS`, as nbgrader's generate_assignment has them, or `ANSWERS`, which leaves the outputs.

    Raises:
        LabsError: nbgrader is missing; the notebook's markers or its nbgrader metadata are wrong.
    """
    try:
        from nbgrader import preprocessors  # takes a second
    except ImportError:
        raise LabsError(
            "cutting out the answers needs nbgrader, which comes with the extra `teach`: "
            "python -m pip install -c constraints.txt -e '.[teach]' in the lab's folder"
        ) from None
    made, resources = nbformat.from_dict(json.loads(json.dumps(notebook))), {}
    for step in steps:
        try:
            made, resources = getattr(preprocessors, step)().preprocess(made, resources)
        except Exception as error:  # nbgrader raises RuntimeError, its own errors and those of jsonschema
            raise LabsError(f"{name}: {' '.join(str(error).split())}") from None
    return made


def read_points(notebook: NotebookNode) -> dict[str, float]:
    """Return the points of a notebook's checks: grade id to points."""
    graded = [meta for cell in notebook.cells if (meta := cell.metadata.get("nbgrader", {})).get("grade")]
    return {meta["grade_id"]: meta["points"] for meta in graded}


# --- Data ---------------------------------------------------------------------------------------------------------


def _find_data(folder: Path) -> dict[str, Path]:
    """The data sets in a folder, read once to see that they are what they should be."""
    from labutils import data  # takes seconds, which the command's other words need not wait for

    found = {name: folder / f"{name}.npz" for name in REAL_DATA if (folder / f"{name}.npz").is_file()}
    if not found:
        raise LabsError(
            f"--data {folder}: there is none of {', '.join(f'{name}.npz' for name in REAL_DATA)}; "
            f"LABUTILS_DATA={folder} labs data mnist puts one there"
        )
    with patch.dict(os.environ, {"LABUTILS_DATA": str(folder)}):
        for name in found:
            try:
                data.load(name)
            except data.DamagedDataError as error:
                raise LabsError(f"--data {folder}: {error}") from None
    return found


# --- Text ---------------------------------------------------------------------------------------------------------


def _table(notebooks: Mapping[str, Notebook], asked: Mapping[str, Mapping[str, float]]) -> str:
    rows = ["| notebook | question | checks | points |", "| --- | --- | ---: | ---: |"]
    for name, notebook in notebooks.items():
        points = asked[name].values()
        link = f"[{name}](notebooks/{name}.ipynb)"
        rows.append(f"| {link} | {notebook.question} | {len(points)} | {sum(points):g} |")
    total = sum(sum(points.values()) for points in asked.values())
    count = sum(map(len, asked.values()))
    return "\n".join([*rows, f"| all | | {count} | {total:g} |"])


def _index(table: str) -> NotebookNode:
    cells = [
        new_markdown_cell(f"# How neural networks learn: the lab\n\n{table}", id="table"),
        new_markdown_cell((TEMPLATES / "work.md").read_text(encoding="utf-8").rstrip(), id="how"),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
