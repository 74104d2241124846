"""The students' release: complete, without answers, and graded by nbgrader as it should be.

**How validation is tested.** ``nbgrader validate`` executes a whole notebook in a kernel of its own, up to half a
minute each, and here it would be 34 times. So every notebook is validated twice, unsolved and solved, as follows:

- nbgrader's own ``Validator`` reads the released file, checks the cells' checksums and judges the outputs.
- What it executes are the cells that the exercises need, found from the names that each cell reads
  (`tests.test_exercise.exercise_cells`): set-up, exercise, check. The experiments are left out.
- It executes them in one kernel that is emptied between notebooks, so that torch is imported once. The kernel finds the
  *released* labutils, with its sealed functions.

Two notebooks are validated whole, with smaller parameters; one of them by the command ``nbgrader validate``, in a
kernel of its own. What is left out of the others is tested elsewhere: the solved notebook that is validated differs
from the lab's in nothing but outputs and metadata (`test_a_solution_put_back_gives_the_notebook_again`), and
test_notebooks.py runs that one from the top.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from nbgrader.preprocessors import Execute
from nbgrader.validator import Validator
from traitlets.config import Config

from labs import cli, release, runner
from labs.release import Release
from labs.runner import LabsError, Project
from tests.conftest import ROOT, TinyLab
from tests.test_exercise import NOTEBOOKS, exercise_cells, nbgrader_of

each_notebook = pytest.mark.parametrize("name", list(NOTEBOOKS))
LONG = 16  # a shorter line of code, such as `return wrong`, says nothing
IDIOMS = {"withtorch.no_grad():", "generator=torch.Generator().manual_seed(seed)"}  # say nothing, either


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release.build(Project(ROOT), tmp_path_factory.mktemp("release") / "lab")


def released(made: Release, name: str) -> NotebookNode:
    return nbformat.read(made.folder / "notebooks" / f"{name}.ipynb", as_version=4)


def solved(made: Release, name: str) -> NotebookNode:
    """The released notebook with the solutions put back, as a student would write them."""
    notebook = released(made, name)
    answers = {cell.id: cell.source for cell in NOTEBOOKS[name].cells if nbgrader_of(cell).get("solution")}
    for cell in notebook.cells:
        cell.source = answers.get(cell.id, cell.source)
    return notebook


# --- No answers ---------------------------------------------------------------------------------------------------


def regions(cell: NotebookNode, what: str) -> list[str]:
    return re.findall(rf"(?s)### BEGIN {what}\n(.*?)\n *### END {what}", cell.source)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def lines_worth_hiding() -> dict[str, str]:
    """Every line of a solution, a hidden test or the body of an answer in labutils, without blanks: its origin."""
    found: dict[str, str] = {}
    for name, notebook in NOTEBOOKS.items():
        for cell in notebook.cells:
            for what in ("SOLUTION", "HIDDEN TESTS"):
                for text in regions(cell, what):
                    found |= {squeezed(line): f"{name}, {what.lower()}" for line in text.splitlines()}
    return {line: origin for line, origin in found.items() if len(line) >= LONG and line not in IDIOMS}


def contents(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file of a folder as text, archives unpacked, notebooks as their cells' text, all without blanks."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name, raw = path.relative_to(folder).as_posix(), path.read_bytes()
        if path.suffix == ".ipynb":
            notebook = nbformat.reads(raw.decode(), as_version=4)
            yield name, squeezed("\n".join(cell.source for cell in notebook.cells) + json.dumps(notebook))
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                yield from (
                    (f"{name}!{inner}", squeezed(archive.read(inner).decode("latin-1"))) for inner in archive.namelist()
                )
        else:
            yield name, squeezed(raw.decode("utf-8", errors="ignore"))


def test_no_line_of_a_solution_or_hidden_test_is_in_the_release(made: Release) -> None:
    lines = lines_worth_hiding()
    assert len(lines) > 50
    texts = dict(contents(made.folder))
    leaks = [(origin, line, name) for line, origin in lines.items() for name, text in texts.items() if line in text]
    assert leaks == []


def test_the_search_for_leaks_finds_them(made: Release, tmp_path: Path) -> None:
    solution = "half = stats.norm.ppf(0.975) / np.sqrt(len(x) - 3)"
    assert squeezed(solution) in lines_worth_hiding()
    (tmp_path / "notes.md").write_text(f"Hint:\n    {solution}")
    with zipfile.ZipFile(tmp_path / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.py", solution)
    nbformat.write(new_notebook(cells=[new_code_cell(f"if 1:\n    {solution}")]), tmp_path / "a.ipynb")
    assert sorted(name for name, text in contents(tmp_path) if squeezed(solution) in text) == [
        "a.ipynb",
        "more.zip!inner.py",
        "notes.md",
    ]


def bodies(names: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """The lines of each function's body in the lab's labutils, without blanks, docstring and comments."""
    for name in names:
        module, *path = name.split(".")
        found: ast.AST = ast.parse((ROOT / "labutils" / f"{module}.py").read_text())
        for part in path:
            [found] = [node for node in found.body if getattr(node, "name", None) == part]
        found.body = found.body[ast.get_docstring(found) is not None :]
        yield name, [squeezed(line) for line in ast.unparse(found.body).splitlines()]


def test_no_body_of_an_answer_is_in_the_release(made: Release) -> None:
    """No three lines in a row; single ones, such as a check of the arguments, other functions have as well."""
    texts = [text for name, text in contents(made.folder) if name.endswith((".py", ".ipynb", ".bin"))]
    texts += [squeezed(ast.unparse(ast.parse(path.read_text()))) for path in made.folder.glob("labutils/*.py")]
    assert len(made.sealed) > 15
    for name, lines in bodies(made.sealed):
        lines = [line for line in lines if line]
        runs = ["".join(lines[at : at + 3]) for at in range(max(1, len(lines) - 2))]
        assert [run for run in runs if any(run in text for text in texts)] == [], name


def test_sealed_functions_work_and_do_not_show_their_text(made: Release) -> None:
    """In the release's own labutils: every example in a docstring of a sealed module runs, no source can be had."""
    modules = sorted({name.partition(".")[0] for name in made.sealed})
    script = f"""
        import doctest, importlib, inspect
        import labutils
        assert labutils.__file__ == {str(made.folder / "labutils" / "__init__.py")!r}, labutils.__file__
        for module in {modules}:
            assert doctest.testmod(importlib.import_module("labutils." + module)).failed == 0
        for name in {list(made.sealed)}:
            module, *path = name.split(".")
            target = importlib.import_module("labutils." + module)
            for part in path:
                target = getattr(target, part)
            target = inspect.unwrap(target)
            assert target.__code__.co_filename == f"<labutils.{{module}}>", name
            try:
                print(inspect.getsource(target))
            except OSError:
                pass
        from labutils import similarity
        assert similarity.cka.__doc__.startswith("Return the centered kernel alignment")
        assert list(inspect.signature(similarity.cka).parameters)[:3] == ["x", "y", "kernel"]
    """
    done = in_release(made, "-c", textwrap.dedent(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def in_release(made: Release | SimpleNamespace, *words: str, **settings: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the release's labutils."""
    environment = os.environ | {"PYTHONPATH": str(made.folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {key: str(value) for key, value in settings.items()}
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd=made.folder, capture_output=True, text=True, check=False
    )


def test_another_python_is_told_what_to_do(made: Release, tmp_path: Path) -> None:
    package = tmp_path / "labutils"
    package.mkdir()
    for name in ("__init__.py", "_sealed.py", "functions.py"):
        (package / name).write_bytes((made.folder / "labutils" / name).read_bytes())
    (package / "_sealed.bin").write_bytes(b"\0\0\r\n" + (made.folder / "labutils" / "_sealed.bin").read_bytes()[4:])
    script = "from labutils._sealed import sealed; sealed('similarity.cka')(print)"
    done = in_release(SimpleNamespace(folder=tmp_path), "-c", script)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: this release of the lab needs Python {made.python}, and this is ")
    assert "environment.yml" in last


# --- Validation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel(made: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncKernelManager]:
    """A kernel that finds the release's labutils."""
    folder = tmp_path_factory.mktemp("kernel")
    manager = AsyncKernelManager(kernel_name="python3")
    settings = {"PYTHONPATH": str(made.folder), "LABUTILS_RUN_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    run_sync(manager.start_kernel)(env=os.environ | settings, extra_arguments=["--HistoryManager.hist_file=:memory:"])
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


def validate(
    notebook: NotebookNode, folder: Path, kernel: AsyncKernelManager, whole: bool = False
) -> dict[str, list[dict[str, str]]]:
    """What nbgrader's validator says of the cells that the exercises need, or of the whole notebook."""

    class InThatKernel(Execute):
        def preprocess(self, nb: NotebookNode, resources: dict | None = None, km: object = None) -> tuple:
            nb.cells.insert(0, new_code_cell("%reset -f"))
            try:
                return super().preprocess(nb, resources, km=kernel)
            finally:
                self.kc.stop_channels()

    if not whole:
        notebook.cells = exercise_cells(notebook)
    nbformat.write(notebook, folder / "notebook.ipynb")
    validator = Validator()
    validator.preprocessors = [InThatKernel if step is Execute else step for step in validator.preprocessors]
    assert InThatKernel in validator.preprocessors
    return validator.validate(str(folder / "notebook.ipynb"))


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.notebook
@pytest.mark.timeout(300)
@each_notebook
def test_a_notebook_fails_before_it_is_solved_and_passes_after(
    name: str, made: Release, kernel: AsyncKernelManager, tmp_path: Path
) -> None:
    told = validate(released(made, name), tmp_path, kernel)
    checks = release.read_exercises(NOTEBOOKS[name]).points
    assert list(told) == ["failed"]
    assert len(told["failed"]) == len(checks), "every check fails"
    for failed in told["failed"]:
        assert re.search(
            r"Mistake: \w+ is not written yet: replace `raise NotImplementedError", plain(failed["raw_error"])
        )
    assert validate(solved(made, name), tmp_path, kernel) == {}


@each_notebook
def test_a_solution_put_back_gives_the_notebook_again(name: str, made: Release) -> None:
    """So what the lab's own tests run is what a student has who solved everything (and more: the hidden tests)."""
    whole = NOTEBOOKS[name]
    for cell in whole.cells:
        if nbgrader_of(cell).get("grade"):
            for hidden in re.findall(r"(?s)\n### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS", cell.source):
                cell.source = cell.source.replace(hidden, "")
    mine = [(cell.cell_type, cell.id, cell.source) for cell in solved(made, name).cells]
    assert mine == [(cell.cell_type, cell.id, cell.source) for cell in whole.cells]


def smaller(notebook: NotebookNode, **values: int) -> NotebookNode:
    """The notebook with other parameters, which a student may change, too."""
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for key, value in values.items():
        parameters.source, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", parameters.source)
        assert count == 1
    return notebook


@pytest.mark.notebook
@pytest.mark.timeout(300)
def test_a_whole_notebook_validates(made: Release, kernel: AsyncKernelManager, tmp_path: Path) -> None:
    name, values = "32_gradient_norm", {"epochs": 20, "seeds": 3, "batch_epochs": 5}
    told = validate(smaller(released(made, name), **values), tmp_path, kernel, whole=True)
    assert "is not written yet" in told["failed"][0]["raw_error"]
    assert validate(smaller(solved(made, name), **values), tmp_path, kernel, whole=True) == {}


@pytest.mark.notebook
@pytest.mark.timeout(300)
def test_a_whole_notebook_validates_by_the_command(made: Release, tmp_path: Path) -> None:
    name, values = "54_gradient_similarity", {"epochs": 1, "seeds": 3, "examples": 100}
    verdicts = []
    for notebook in (released(made, name), solved(made, name)):
        nbformat.write(smaller(notebook, **values), tmp_path / "notebook.ipynb")
        done = in_release(
            made, "-m", "nbgrader", "validate", str(tmp_path / "notebook.ipynb"), LABUTILS_RUN_DIR=tmp_path
        )
        assert done.returncode == 0, done.stderr
        verdicts.append(" ".join(done.stdout.split()))
    assert "VALIDATION FAILED ON 1 CELL(S)" in verdicts[0]
    assert "is not written yet" in verdicts[0]
    assert verdicts[1] == "Success! Your notebook passes all the tests."


# --- A full round of nbgrader -------------------------------------------------------------------------------------


@pytest.mark.notebook
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # nbgrader's own use of its database
def test_a_full_round_of_nbgrader(made: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assign, hand in, grade, give feedback: one right and one wrong answer, and a check that was tampered with.

    The notebook is 51, which has two exercises, down to the cells that these need. Grading uses the lab's own labutils.
    """
    name = "51_readout_learning_rates"
    monkeypatch.setenv("LABUTILS_RUN_DIR", str(tmp_path / "run"))
    # nbgrader starts `alembic` by its bare name
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    config = Config()
    config.CourseDirectory.root = str(tmp_path)
    config.CourseDirectory.db_url = f"sqlite:///{tmp_path / 'gradebook.db'}"
    api = NbGraderAPI(config=config)

    def put(notebook: NotebookNode, *folders: str) -> None:
        folder = tmp_path.joinpath(*folders, "lab")
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / f"{name}.ipynb")

    source = nbformat.from_dict(NOTEBOOKS[name])
    source.cells = exercise_cells(source)
    put(source, "source")
    succeeds(api.generate_assignment("lab"))
    assigned = nbformat.read(tmp_path / "release" / "lab" / f"{name}.ipynb", as_version=4)
    ours = exercise_cells(released(made, name))
    assert [(cell.source, cell.metadata) for cell in ours] == [(cell.source, cell.metadata) for cell in assigned.cells]

    answers = {cell.id: cell for cell in solved(made, name).cells}
    handed_in = nbformat.from_dict(assigned)
    for cell in handed_in.cells:
        cell.source = answers[cell.id].source
        if cell.id == "exercise-groups":  # the rates at the wrong layers
            cell.source = cell.source.replace("readout: float, rest: float", "rest: float, readout: float")
    put(handed_in, "submitted", "one")
    for cell in handed_in.cells:
        if nbgrader_of(cell).get("locked"):
            cell.source = "pass"
    put(handed_in, "submitted", "two")
    for student in ("one", "two"):
        succeeds(api.autograde("lab", student))
        succeeds(api.generate_feedback("lab", student))
        with Gradebook(config.CourseDirectory.db_url) as gradebook:
            grades = gradebook.find_submission("lab", student).notebooks[0].grades
            assert {grade.name: (grade.auto_score, grade.max_score) for grade in grades} == {
                "two-groups-test": (0, 2),
                "centered-alignment-test": (3, 3),
            }
        page = (tmp_path / "feedback" / student / "lab" / f"{name}.html").read_text()
        text = " ".join(BeautifulSoup(page, "html.parser").get_text().split())
        assert "Likely cause: the two rates are exchanged." in text
        assert "first wrong entry [0, 0]: " in text


def succeeds(result: dict[str, object]) -> None:
    assert result["success"], f"{result.get('error')}\n{result.get('log')}"


# --- The folder ---------------------------------------------------------------------------------------------------


def test_the_release_is_complete(made: Release) -> None:
    manifest = json.loads((made.folder / "release.json").read_text())
    names = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert names == {*manifest["files"], "release.json"}
    assert {f"notebooks/{name}.ipynb" for name in NOTEBOOKS} < names
    assert {f"labutils/{path.name}" for path in (ROOT / "labutils").glob("*.py")} < names
    assert {"notebooks/runs.yaml", "constraints.txt", "requirements.txt", "LICENSE", "index.ipynb"} < names
    assert made.folder.stat().st_mode & 0o055 == 0o055, "others may read it"
    for name in NOTEBOOKS:
        for cell in released(made, name).cells:
            assert cell.get("outputs", []) == []
            assert "BEGIN" not in cell.source
            if nbgrader_of(cell).get("locked"):
                assert cell.metadata["editable"] is False, "nbgrader locks checks"


def test_labs_works_in_the_release(made: Release) -> None:
    done = in_release(made, "-m", "labs.cli", "list", "--out", "nowhere")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in NOTEBOOKS)
    with pytest.raises(LabsError, match="is itself a release: make one where the solutions are"):
        release.build(Project(made.folder), made.folder.with_name("other"))


def test_the_index_names_every_notebook_with_question_and_points(made: Release) -> None:
    texts = [(made.folder / "README.md").read_text()]
    index = nbformat.read(made.folder / "index.ipynb", as_version=4)
    nbformat.validate(index)
    texts.append("\n".join(cell.source for cell in index.cells))
    for text in texts:
        for notebook in runner.load_notebooks(Project(ROOT)).values():
            checks = release.read_exercises(NOTEBOOKS[notebook.name]).points
            row = f"| {notebook.question} | {len(checks)} | {sum(checks.values())} |"
            assert f"[{notebook.name}](notebooks/{notebook.name}.ipynb) {row}" in text
        assert f"| all | | {sum(1 for _ in all_checks())} | {sum(all_checks())} |" in text
    assert sum(made.points.values()) == sum(all_checks())


def all_checks() -> Iterator[float]:
    for notebook in NOTEBOOKS.values():
        yield from release.read_exercises(notebook).points.values()


def test_the_environment_asks_for_the_python_that_sealed_it(made: Release) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert made.python == version
    project = tomllib.loads((made.folder / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == f"=={version}.*"
    assert "_sealed.bin" in project["tool"]["setuptools"]["package-data"]["labutils"]
    assert (made.folder / project["project"]["readme"]).exists()
    environment = yaml.safe_load((made.folder / "environment.yml").read_text())
    assert f"python {version}.*" in environment["dependencies"]
    assert f"needs Python {version}" in (made.folder / "README.md").read_text()


@pytest.fixture
def small(tiny_lab: TinyLab) -> TinyLab:
    """A lab of one notebook whose exercise asks for a function of its labutils."""
    tiny_lab.add("21_fit")
    path = tiny_lab.project.notebooks / "21_fit.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for meta, source in (
        ({"grade": False, "solution": True, "locked": False}, "### BEGIN SOLUTION\nx = 1\n### END SOLUTION"),
        ({"grade": True, "solution": False, "locked": True, "points": 2}, 'exercise.attempt(x, ["models.twice"])'),
    ):
        cell = new_code_cell(source)
        cell.metadata["nbgrader"] = {"schema_version": 3, "task": False, "grade_id": f"e{len(source)}"} | meta
        notebook.cells.append(cell)
    nbformat.write(notebook, path)
    (tiny_lab.project.package / "models.py").write_text(
        '"""Networks."""\n\n\ndef twice(x):\n    """Return 2 x."""\n    y = x + x\n    return y\n'
    )
    for name in ("environment.yml", "pyproject.toml"):
        (tiny_lab.root / name).write_bytes((ROOT / name).read_bytes())
    return tiny_lab


def test_a_release_replaces_a_release_and_nothing_else(small: TinyLab, tmp_path: Path) -> None:
    place = tmp_path / "out" / "lab"
    release.build(small.project, place)
    release.build(small.project, place)  # an earlier release, as it was made
    (place / "labutils" / "__pycache__").mkdir()
    (place / "labutils" / "__pycache__" / "models.pyc").touch()
    assert release.build(small.project, place).folder == place
    assert [path.name for path in place.parent.iterdir()] == ["lab"]

    (place / "notebooks" / "21_fit.ipynb").write_text("mine")
    (place / "notes.txt").touch()
    with pytest.raises(LabsError, match=r"has been worked in \(notebooks/21_fit.ipynb and 1 more\): move it away"):
        release.build(small.project, place)
    assert (place / "notebooks" / "21_fit.ipynb").read_text() == "mine"

    other = tmp_path / "other"
    other.mkdir()
    release.build(small.project, other)  # an empty folder is no loss
    for content in ("", "[]", "{}", '{"files": {}}', '{"sealed": [], "files": 3}'):
        (tmp_path / "none").mkdir(exist_ok=True)
        (tmp_path / "none" / "release.json").write_text(content)
        with pytest.raises(LabsError, match="is there and is not a release: name another folder"):
            release.build(small.project, tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(LabsError, match="is there and is not a release"):
        release.build(small.project, tmp_path / "file")


def test_a_release_that_fails_leaves_nothing(small: TinyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "out" / "lab"
    release.build(small.project, place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    monkeypatch.setattr(release, "_readme", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        release.build(small.project, place)
    with pytest.raises(ZeroDivisionError):
        release.build(small.project, place.with_name("second"))
    assert [path.name for path in place.parent.iterdir()] == ["lab"]
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_without_nbgrader_the_error_says_how_to_get_it(
    small: TinyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "nbgrader" else find(name))
    with pytest.raises(LabsError, match=r"needs nbgrader, .* -c constraints.txt -e '\.\[teach\]'"):
        release.build(small.project, tmp_path / "students")
    assert not (tmp_path / "students").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("exercise.attempt(x, without=NAMES)", r"21_fit: write out the names in exercise.attempt\(x, without=NAMES\)"),
        ("exercise.attempt(x, ['models.thrice'])", "labutils.models has no function 'thrice'"),
        ("exercise.attempt(x, ['nowhere.twice'])", "labutils has no module 'nowhere'"),
        ("### BEGIN HIDDEN TESTS", "21_fit: No end hidden tests"),
        ("### BEGIN SOLUTION", "21_fit: no end solution"),
    ],
)
def test_a_wrong_notebook_is_named(source: str, words: str, small: TinyLab, tmp_path: Path) -> None:
    path = small.project.notebooks / "21_fit.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source = source
    nbformat.write(notebook, path)
    with pytest.raises(LabsError, match=words):
        release.build(small.project, tmp_path / "students")
    assert not (tmp_path / "students").exists()


def test_functions_without_a_body_cannot_be_sealed() -> None:
    for source in ("def f(x): return x\n", 'def f(x):\n    """Only words."""\n'):
        with pytest.raises(LabsError, match="nothing to seal"):
            release.seal({"m": source}, ["m.f"])


def test_sealing_keeps_everything_around_a_function() -> None:
    source = '''\
"""A module."""

from __future__ import annotations

import functools


@functools.cache
def one(x: int = 3) -> int:
    """Words."""

    # a remark on the secret
    def inner() -> int:
        return x + 1

    return inner()


class Two:
    """A class."""

    def __init__(self) -> None:
        super().__init__()

    def method(self) -> int:
        return 22


three = 3
'''
    text, codes = release.seal({"m": source}, ["m.one", "m.Two"])
    assert sorted(codes) == ["m.Two.method", "m.one"], "what uses super() cannot be given another body"
    assert "x + 1" not in text["m"]
    assert "22" not in text["m"]
    assert "secret" not in text["m"]
    assert text["m"].endswith("three = 3\n")
    sealed = {
        name: lambda function, code=code: setattr(function, "__code__", code) or function
        for name, code in codes.items()
    }
    namespace: dict[str, object] = {"_sealed": sealed.__getitem__}
    exec(text["m"].replace("from labutils._sealed import sealed as _sealed\n", ""), namespace)
    assert (namespace["one"](), namespace["one"](5), namespace["Two"]().method(), namespace["three"]) == (4, 6, 22, 3)
    assert namespace["one"].__doc__ == "Words."


# --- Data and the command -----------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(20) % 10 for part in ("train", "test")}
    np.savez(folder / "cifar10.npz", **arrays, **labels)
    return folder


def test_data_are_copied(small: TinyLab, tmp_path: Path, cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABUTILS_DATA", "elsewhere")
    made = release.build(small.project, tmp_path / "students", data=cifar)
    assert made.data == ("cifar10",)
    assert (made.folder / "data" / "cifar10.npz").read_bytes() == (cifar / "cifar10.npz").read_bytes()
    assert "brings `cifar10` along" in (made.folder / "README.md").read_text()
    assert os.environ["LABUTILS_DATA"] == "elsewhere"


def test_data_that_are_missing_or_damaged_are_refused(small: TinyLab, tmp_path: Path, cifar: Path) -> None:
    with pytest.raises(LabsError, match=r"there is none of mnist.npz, fashion_mnist.npz, cifar10.npz"):
        release.build(small.project, tmp_path / "students", data=tmp_path)
    content = (cifar / "cifar10.npz").read_bytes()
    (cifar / "cifar10.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(LabsError, match=r"--data .*cifar10.npz"):
        release.build(small.project, tmp_path / "students", data=cifar)
    assert not (tmp_path / "students").exists()


def test_the_command(
    small: TinyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(small.root)
    monkeypatch.setattr(runner, "PACKAGE", small.project.package)
    assert cli.main(["release", str(tmp_path / "students")]) == 0
    told = capsys.readouterr().out
    assert f"release    {tmp_path / 'students'}" in told
    assert "notebooks  1, 2 points" in told
    assert "sealed     models.twice" in told
    (tmp_path / "students" / "more.txt").touch()
    assert cli.main(["release", str(tmp_path / "students")]) == 2
    assert "labs: " in (error := capsys.readouterr().err)
    assert "has been worked in (more.txt)" in error
    assert cli.main(["release", str(tmp_path / "new"), "--data", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "new").exists()
