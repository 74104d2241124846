"""Makes what students get: the notebooks without solutions, and a labutils that does not show the answers.

``build`` writes a folder that is complete or not there::

    DIR/README.md, index.ipynb     how to set it up; the notebooks with their questions and points
        environment.yml, requirements.txt, constraints.txt, pyproject.toml
        notebooks/*.ipynb          as nbgrader's generate_assignment makes them: solutions and hidden tests cut,
                                   outputs cleared, check cells locked
        notebooks/runs.yaml        the named runs, so that `labs run` works as in the lab
        labutils/                  the module
        data/                      data files, if some were given
        release.json               what is in the release, with the SHA-256 of each file

**Answers in labutils.** Many exercises ask for a function that labutils has. Each check names these functions
(``exercise.attempt(f, without=["similarity.cka"])``), and two things keep them from being handed in:

- While a check runs the student's function, they raise an error (`labutils.exercise.without`).
- In the release they are *sealed*: signature and docstring stay in the module, the body is not there as text. It
  lies compiled in ``labutils/_sealed.bin``, which belongs to one minor version of Python, the one that makes the
  release; environment.yml and pyproject.toml of the release ask for it.

That keeps answers from being read in passing, or imported. It is no lock: a student who disassembles the file or takes
the guard out of the check finds a way. The grade is safe from the second only where the instructor's own checks run,
as with ``nbgrader autograde``, which puts its check cells in place of the submitted ones.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import marshal
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from labs import runner
from labs.runner import LabsError, Notebook, Project
from labutils import __version__

MANIFEST = "release.json"
REAL_DATA = ("mnist", "fashion_mnist", "cifar10")
_FORMAT = 1
_COPIED = ("constraints.txt", "LICENSE", "LICENSE-TEXT")
_BY_THE_WAY = {"__pycache__", ".ipynb_checkpoints", "labutils.egg-info", ".venv"}  # made by using a release
_SEALED_MODULE = '''\
"""Opens the sealed functions: those that an exercise asks you to write.

They work as ever, and their docstrings say what they do. Only their text is not here: write your own.
"""

import functools
import importlib.util
import marshal
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType

_PYTHON = "{python}"


@functools.cache
def _codes() -> dict[str, CodeType]:
    magic, content = (raw := Path(__file__).with_name("_sealed.bin").read_bytes())[:4], raw[4:]
    if magic != importlib.util.MAGIC_NUMBER:
        raise ImportError(
            f"this release of the lab needs Python {{_PYTHON}}, and this is {{sys.version.split()[0]}}: create the "
            "environment that environment.yml describes, or ask for a release for your version"
        )
    return marshal.loads(content)


def sealed(name: str) -> Callable[[FunctionType], FunctionType]:
    """Give a function its body."""

    def give(function: FunctionType) -> FunctionType:
        function.__code__ = _codes()[name]
        return function

    return give
'''


@dataclass(frozen=True)
class Exercises:
    """What a notebook asks of students.

    Attributes:
        points: grade id of each check to its points.
        answers: the functions of labutils that its checks refuse, such as "similarity.cka".
    """

    points: dict[str, float]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Release:
    """A release that was made.

    Attributes:
        folder: where it is.
        points: notebook to the sum of its points.
        sealed: the functions whose text is not in it.
        python: the minor version of Python that it needs, such as "3.11".
        data: the data sets that it brings along.
    """

    folder: Path
    points: dict[str, float]
    sealed: tuple[str, ...]
    python: str
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
            release; a notebook's markers or the names of its answers are wrong; there are no data to copy. Nothing is
            written then.
    """
    _require_nbgrader()
    if (project.root / MANIFEST).exists():
        raise LabsError(f"{project.root} is itself a release: make one where the solutions are, in the lab")
    folder = folder.expanduser().resolve()
    _check_place(folder)
    files = _find_data(data) if data else {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=runner.PARTIAL, dir=folder.parent))
    try:
        release = _write(project, partial / folder.name, files)
        (partial / folder.name).chmod(0o755)
        _check_place(folder)  # it has taken seconds
        if folder.exists():
            os.replace(folder, partial / "earlier")
        os.replace(partial / folder.name, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Release(folder, *release, tuple(files))


def _require_nbgrader() -> None:
    if importlib.util.find_spec("nbgrader") is None:
        raise LabsError(
            "labs release needs nbgrader, which comes with the extra `teach`: "
            "python -m pip install -c constraints.txt -e '.[teach]' in the lab's folder"
        )


def _check_place(folder: Path) -> None:
    """Refuse what a release must not replace."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"]) if "sealed" in manifest else None
    except (OSError, ValueError, KeyError, TypeError):
        files = None
    if files is None:
        raise LabsError(f"{folder} is there and is not a release: name another folder")
    there = {path.relative_to(folder).as_posix() for path in _files(folder)} - {MANIFEST}
    changed = sorted(
        name for name in there if not _BY_THE_WAY & set(Path(name).parts) and files.get(name) != _hash(folder / name)
    )
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise LabsError(f"{folder} has been worked in ({changed[0]}{more}): move it away, or name another folder")


def _write(project: Project, folder: Path, data: Mapping[str, Path]) -> tuple[dict[str, float], tuple[str, ...], str]:
    """Write the whole release into a new folder; return points, sealed functions and Python's version."""
    python = "{}.{}".format(*sys.version_info)
    notebooks = runner.load_notebooks(project)
    asked: dict[str, Exercises] = {}
    (folder / "notebooks").mkdir(parents=True)
    for notebook in notebooks.values():
        whole = nbformat.read(notebook.path, as_version=4)
        asked[notebook.name] = read_exercises(whole, notebook.name)
        nbformat.write(student_version(whole, notebook.name), folder / "notebooks" / notebook.path.name)
    for path in sorted(project.notebooks.glob("*.yaml")):
        shutil.copyfile(path, folder / "notebooks" / path.name)

    answers = sorted({answer for exercises in asked.values() for answer in exercises.answers})
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(project.package.glob("*.py"))}
    sources, codes = seal(sources, answers)
    (folder / "labutils").mkdir()
    for module, source in sources.items():
        (folder / "labutils" / f"{module}.py").write_text(source, encoding="utf-8")
    (folder / "labutils" / "_sealed.py").write_text(_SEALED_MODULE.format(python=python), encoding="utf-8")
    (folder / "labutils" / "_sealed.bin").write_bytes(importlib.util.MAGIC_NUMBER + marshal.dumps(codes))
    for path in project.package.glob("py.typed"):
        shutil.copyfile(path, folder / "labutils" / path.name)

    for name in _COPIED:
        if (project.root / name).exists():
            shutil.copyfile(project.root / name, folder / name)
    settings = {
        "environment.yml": ((r"(?m)^( *- python) .*$", rf"\1 {python}.*"),),
        "pyproject.toml": (
            (r"(?m)^requires-python = .*$", f'requires-python = "=={python}.*"'),
            (r'(?m)^labutils = \["py\.typed"', 'labutils = ["_sealed.bin", "py.typed"'),
        ),
    }
    for name, changes in settings.items():
        text = (project.root / name).read_text(encoding="utf-8")
        for pattern, replacement in changes:
            text, count = re.subn(pattern, replacement, text)
            if count != 1:
                raise LabsError(f"{name} has {count} lines like {pattern!r}, a release changes one")
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "requirements.txt").write_text("-c constraints.txt\n-e .\n", encoding="utf-8")
    if data:
        (folder / "data").mkdir()
        for name, path in data.items():
            shutil.copyfile(path, folder / "data" / f"{name}.npz")

    table = _table(notebooks, asked)
    (folder / "README.md").write_text(_readme(table, python, list(data)), encoding="utf-8")
    nbformat.write(_index(table), folder / "index.ipynb")
    points = {name: sum(exercises.points.values()) for name, exercises in asked.items()}
    manifest = {
        "format": _FORMAT,
        "labutils": __version__,
        "python": python,
        "notebooks": {name: exercises.points for name, exercises in asked.items()},
        "sealed": sorted(codes),
        "files": {path.relative_to(folder).as_posix(): _hash(path) for path in _files(folder)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return points, tuple(sorted(codes)), python


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Notebooks ----------------------------------------------------------------------------------------------------


def student_version(notebook: NotebookNode, name: str = "the notebook") -> NotebookNode:
    """Cut solutions and hidden tests out of a notebook and clear its outputs, as nbgrader's generate_assignment does.

    Args:
        notebook: of format 4; it stays as it is.
        name: its name, for messages.

    Raises:
        LabsError: its markers or its nbgrader metadata are wrong.
    """
    from nbgrader import preprocessors as steps  # takes a second

    cut, resources = nbformat.from_dict(json.loads(json.dumps(notebook))), {}
    # Those of nbgrader's GenerateAssignment, in its order, but for the ones that need its database or a kernel.
    for step in (
        steps.LockCells,
        steps.ClearSolutions,
        steps.ClearOutput,
        steps.CheckCellMetadata,
        steps.ComputeChecksums,
        steps.ClearHiddenTests,
        steps.ClearMarkScheme,
        steps.ComputeChecksums,
        steps.CheckCellMetadata,
    ):
        try:
            cut, resources = step().preprocess(cut, resources)
        except Exception as error:  # nbgrader raises RuntimeError, its own errors and those of jsonschema
            raise LabsError(f"{name}: {' '.join(str(error).split())}") from None
    return cut


def read_exercises(notebook: NotebookNode, name: str = "the notebook") -> Exercises:
    """Read what a notebook asks for: the points of its checks, and the answers that they refuse.

    Raises:
        LabsError: a check refuses a function whose name is not written out.

    Example:
        >>> from nbformat.v4 import new_code_cell
        >>> check = new_code_cell("solve = exercise.attempt(mine, without=['similarity.cka', 'torch.optim.SGD'])")
        >>> check.metadata["nbgrader"] = {"grade": True, "grade_id": "cka-test", "points": 3}
        >>> read_exercises(new_notebook(cells=[check]))
        Exercises(points={'cka-test': 3}, answers=('similarity.cka',))
    """
    points: dict[str, float] = {}
    answers: list[str] = []
    for cell in notebook.cells:
        meta = cell.metadata.get("nbgrader", {})
        if not meta.get("grade"):
            continue
        points[meta["grade_id"]] = meta["points"]
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="exercise"), attr="attempt")):
                    named = [keyword.value for keyword in node.keywords if keyword.arg == "without"] or node.args[1:2]
                    try:
                        answers += [answer for value in named for answer in ast.literal_eval(value)]
                    except (ValueError, TypeError):
                        raise LabsError(
                            f"{name}: write out the names in {ast.unparse(node)}: a release has to read them"
                        ) from None
    return Exercises(points, tuple(answer for answer in answers if not answer.startswith("torch.")))


# --- Sealing ------------------------------------------------------------------------------------------------------


def seal(sources: Mapping[str, str], names: list[str]) -> tuple[dict[str, str], dict[str, CodeType]]:
    """Take functions' bodies out of modules.

    Args:
        sources: module to its text.
        names: "module.function", or "module.Class" for all its methods (except those that use ``super()``).

    Returns:
        The modules, in which the functions have no body and a decorator that brings it back; and the bodies by name.

    Raises:
        LabsError: there is no such function, or it has no body worth sealing.

    Example:
        >>> text, codes = seal({"m": "def twice(x):\\n    '''Return 2 x.'''\\n    return 2 * x\\n"}, ["m.twice"])
        >>> print(text["m"], list(codes))
        from labutils._sealed import sealed as _sealed
        @_sealed("m.twice")
        def twice(x):
            '''Return 2 x.'''
            ...
         ['m.twice']
    """
    done, codes = dict(sources), {}
    for module in sorted({name.partition(".")[0] for name in names}):
        if module not in sources:
            raise LabsError(f"labutils has no module {module!r}, which a check names as an answer")
        wanted = [name.partition(".")[2] for name in names if name.startswith(f"{module}.")]
        done[module], found = _seal_module(module, sources[module], wanted)
        codes |= {f"{module}.{name}": code for name, code in found.items()}
    return done, codes


def _seal_module(module: str, source: str, wanted: list[str]) -> tuple[str, dict[str, CodeType]]:
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    compiled = {
        code.co_qualname: code for code in _walk(compile(source, f"<labutils.{module}>", "exec", dont_inherit=True))
    }
    nodes: dict[str, ast.FunctionDef] = {}
    for name in wanted:
        found = [node for node in tree.body if getattr(node, "name", None) == name]
        match found:
            case [ast.FunctionDef() as node]:
                nodes[name] = node
            case [ast.ClassDef(body=body)]:
                methods = {f"{name}.{node.name}": node for node in body if isinstance(node, ast.FunctionDef)}
                nodes |= {key: node for key, node in methods.items() if not compiled[key].co_freevars}
            case _:
                raise LabsError(f"labutils.{module} has no function {name!r}, which a check names as an answer")
    for name, node in sorted(nodes.items(), key=lambda pair: -pair[1].lineno):
        documented = ast.get_docstring(node) is not None
        body = node.body[documented:]
        head = node.body[0].end_lineno if documented else node.body[0].lineno - 1
        if not body or head < node.lineno:
            raise LabsError(f"labutils.{module}.{name} has no body on lines of its own: there is nothing to seal")
        indent = " " * node.body[0].col_offset
        lines[head : node.end_lineno] = [f"{indent}...\n"]
        lines.insert(node.lineno - 1, f'{" " * node.col_offset}@_sealed("{module}.{name}")\n')
    futures = [
        node.end_lineno for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    top = futures[-1] if futures else (tree.body[0].end_lineno if ast.get_docstring(tree) is not None else 0)
    lines.insert(top, "from labutils._sealed import sealed as _sealed\n")
    return "".join(lines), {name: compiled[name] for name in nodes}


def _walk(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _walk(const)


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


def _table(notebooks: Mapping[str, Notebook], asked: Mapping[str, Exercises]) -> str:
    rows = ["| notebook | question | checks | points |", "| --- | --- | ---: | ---: |"]
    for name, notebook in notebooks.items():
        points = asked[name].points.values()
        link = f"[{name}](notebooks/{name}.ipynb)"
        rows.append(f"| {link} | {notebook.question} | {len(points)} | {sum(points):g} |")
    total = sum(points for exercises in asked.values() for points in exercises.points.values())
    count = sum(len(exercises.points) for exercises in asked.values())
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
and often why. It draws new random cases at every run.

Change what you like in the other cells. The checks, and the cells that make their cases, are locked: grading uses the
originals. Restart the kernel and run everything once before you hand a notebook in."""


def _readme(table: str, python: str, data: list[str]) -> str:
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

The lab needs Python {python}, no other version (see the last section). With conda:

```bash
conda env create -f environment.yml
conda activate learning-lab
jupyter lab index.ipynb
```

Or with pip:

```bash
python{python} -m venv .venv
.venv/bin/python -m pip install -r requirements.txt     # Windows: .venv\\Scripts\\python
.venv/bin/jupyter lab index.ipynb
```

{_WORK}

`labs run 21` runs a notebook from the command line, `labs list` shows what there is.

## Data

As they stand, the notebooks use data that come with the lab. The runs that repeat an experiment on MNIST, Fashion-MNIST
or CIFAR-10 (`labs run 21 --profile full`) need these.

{about_data}
## What labutils does not show

Some exercises ask for a function that labutils has. In this copy these functions have their docstrings, but no text:
they are compiled, for Python {python}. They work wherever a notebook uses them. In a check, your own function
cannot call them.
"""
