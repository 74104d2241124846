"""Makes what students get: the notebooks without solutions, and the two packages.

``build`` writes a folder that is complete or not there::

    DIR/README.md, index.ipynb     how to set it up; the notebooks with their questions and points
        environment.yml, requirements.txt, constraints.txt, pyproject.toml
        notebooks/*.ipynb          as nbgrader's generate_assignment makes them: solutions and hidden tests cut,
                                   outputs cleared, check cells locked
        notebooks/*.yaml           the named runs, so that `labs run` works as in the lab
        labutils/, labs/           the packages, as they are
        book/results/              what the source runs gave, which the notebooks show
        data/                      data files, if some were given
        originals.zip              the notebooks once more, for `labs check` to compare with
        nbgrader_config.py         how nbgrader grades them (see ``labs.grading``), for the instructor's course folder
        release.json               what is in the release, with the SHA-256 of each file

**Answers in labutils.** Many exercises ask for a function that labutils has, and that the experiments of the same
notebook need. So its text stays, and nothing pretends to hide it. Each check names these functions
(``exercise.attempt(f, without=["similarity.cka"])``): while it runs the student's function, they raise an error, by
whatever way they are called (`labutils.exercise.without`). A student can still copy their text. What a grade says is
that the checks passed, with their hidden tests, in the instructor's copy of the notebook.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from labs import runner, submission
from labs.runner import MANIFEST, LabsError, Notebook, Project
from labutils import __version__
from labutils.files import hash_file

REAL_DATA = ("mnist", "fashion_mnist", "cifar10")
_FORMAT = 1
_COPIED = ("constraints.txt", "environment.yml", "pyproject.toml", "LICENSE", "LICENSE-TEXT")
_CACHES = shutil.ignore_patterns("__pycache__", "*.pyc")
_BY_THE_WAY = {"__pycache__", ".ipynb_checkpoints", "labutils.egg-info", ".venv"}  # made by using a release
# nbgrader's steps, in the order of its GenerateAssignment, but for those that need its database or a kernel.
STUDENTS = (
    *("LockCells", "ClearSolutions", "ClearOutput", "CheckCellMetadata", "ComputeChecksums", "ClearHiddenTests"),
    *("ClearMarkScheme", "ComputeChecksums", "CheckCellMetadata"),
)
ANSWERS = ("ClearSolutions", "ClearHiddenTests")


@dataclass(frozen=True)
class Release:
    """A release that was made.

    Attributes:
        folder: where it is.
        points: notebook to the sum of its points.
        data: the data sets that it brings along.
    """

    folder: Path
    points: dict[str, float]
    data: tuple[str, ...]


def build(project: Project, folder: Path, *, data: Path | None = None) -> Release:
    """Make a release.

    Args:
        project: the lab, with the solutions.
        folder: where the release goes. An earlier release there is replaced, if nothing in it has changed.
        data: a folder with NAME.npz of real data sets, to be copied into the release.

    Returns:
        What was made.

    Raises:
        LabsError: nbgrader is missing; the folder is there and is not a release, or was worked in; the lab is itself a
            release; a notebook's markers or its nbgrader metadata are wrong; there are no data to copy. Nothing is
            written then.
    """
    if (project.root / MANIFEST).exists():
        raise LabsError(f"{project.root} is itself a release: make one where the solutions are, in the lab")
    folder = folder.expanduser().resolve()
    _check_place(folder)
    files = _find_data(data) if data else {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=runner.PARTIAL, dir=folder.parent))
    try:
        points = _write(project, partial / folder.name, files)
        (partial / folder.name).chmod(0o755)
        _check_place(folder)  # it has taken seconds
        if folder.exists():
            os.replace(folder, partial / "earlier")
        os.replace(partial / folder.name, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Release(folder, points, tuple(files))


def _check_place(folder: Path) -> None:
    """Refuse what a release must not replace."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"]) if "notebooks" in manifest else None
    except (OSError, ValueError, KeyError, TypeError):
        files = None
    if files is None:
        raise LabsError(f"{folder} is there and is not a release: name another folder")
    there = {path.relative_to(folder).as_posix() for path in _files(folder)} - {MANIFEST}
    changed = sorted(
        name
        for name in there
        if not _BY_THE_WAY & set(Path(name).parts) and files.get(name) != hash_file(folder / name)
    )
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise LabsError(f"{folder} has been worked in ({changed[0]}{more}): move it away, or name another folder")


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
    (folder / "nbgrader_config.py").write_text(_CONFIG, encoding="utf-8")
    if data:
        (folder / "data").mkdir()
        for name, path in data.items():
            shutil.copyfile(path, folder / "data" / f"{name}.npz")

    table = _table(notebooks, asked)
    (folder / "README.md").write_text(_readme(table, list(data)), encoding="utf-8")
    nbformat.write(_index(table), folder / "index.ipynb")
    manifest = {
        "format": _FORMAT,
        "labutils": __version__,
        "notebooks": asked,
        "files": {path.relative_to(folder).as_posix(): hash_file(path) for path in _files(folder)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {name: sum(points.values()) for name, points in asked.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- Notebooks ----------------------------------------------------------------------------------------------------


def cut(notebook: NotebookNode, name: str, steps: Sequence[str]) -> NotebookNode:
    """Cut out of a notebook what students do not get, with nbgrader's own steps.

    Args:
        notebook: of format 4; it stays as it is.
        name: its name, for messages.
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
    with _environment("LABUTILS_DATA", str(folder)):
        for name in found:
            try:
                data.load(name)
            except data.DamagedDataError as error:
                raise LabsError(f"--data {folder}: {error}") from None
    return found


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


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
        new_markdown_cell(_WORK, id="how"),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


_WORK = """\
## How to work

Read a notebook from the top, and run its cells in order. Its exercises come last: write your code in place of
`raise NotImplementedError()`, run the cell, then the check below it. A check that fails says what differs, where first,
and often why. Its random cases are the same at every run; grading tries some more.

Change what you like in the other cells, and add your own. The checks, and the cells that make their cases, are locked:
grading uses the originals. It runs the parameters, the set-up, the exercises and what you have added, not the lesson:
so an answer should get what it needs as arguments. Restart the kernel and run everything once before you hand a
notebook in, then let the lab look at it:

```bash
labs check notebooks/21_function_fitting.ipynb
```

It says whether everything is there that a grade needs, and what to do if not. With `--repair NEW_FOLDER` it puts your
answers into a clean copy of the notebook."""


_CONFIG = '''\
"""How nbgrader grades this lab. For instructors: copy this file to the course folder; their page says what it does."""

from pathlib import Path

from labs import grading

COURSE = Path(__file__).resolve().parent
RELEASE = COURSE / "students"  # the folder that `labs release` made

grading.configure(get_config(), COURSE, RELEASE)  # noqa: F821, nbgrader knows it
'''


def _readme(table: str, data: list[str]) -> str:
    if data:
        names = ", ".join(f"`{name}`" for name in data)
        about_data = f"""\
This folder brings {names} along. Tell the lab before you start Jupyter, in the same terminal and in this folder:

```bash
export LABUTILS_DATA="$PWD/data"      # Windows: set LABUTILS_DATA=%CD%\\data
```
"""
    else:
        about_data = """\
`labs data mnist` downloads a data set, once. Where there is no internet, your instructor has a folder with the files:
let the environment variable `LABUTILS_DATA` name it before you start Jupyter.
"""
    return f"""\
# How neural networks learn: the lab

{table}

## Set-up

The lab needs Python 3.11 or newer. With conda:

```bash
conda env create -f environment.yml
conda activate learning-lab
jupyter lab index.ipynb
```

Or with pip:

```bash
python3 -m venv .venv
.venv/bin/python -m pip install -r requirements.txt     # Windows: .venv\\Scripts\\python
.venv/bin/jupyter lab index.ipynb
```

{_WORK}

`labs run 21` runs a notebook from the command line, `labs list` shows what there is.

## Data

As they stand, the notebooks use data that come with the lab. The runs that repeat an experiment on MNIST, Fashion-MNIST
or CIFAR-10 (`labs run 21 --profile full`) need these.

{about_data}
## Answers in labutils

Some exercises ask for a function that labutils has, because the experiments use it. In a check, your own function
cannot call it. Write yours before you read that one: the point is that you can.
"""
