"""The students' release: complete, without solutions, and graded by nbgrader as it should be.

`tests/test_exercise.py` tries every exercise, unsolved, solved and wrong. Here one notebook goes through ``nbgrader
validate`` with the released packages, and one through a full round of grading.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from traitlets.config import Config

from labs import cli, release, runner
from labs.release import Release
from labs.runner import LabsError, Project
from tests.conftest import ROOT, TinyLab
from tests.test_exercise import NOTEBOOKS, exercise_cells, nbgrader_of

each_notebook = pytest.mark.parametrize("name", list(NOTEBOOKS))
LONG = 16  # a shorter line of code, such as `return wrong`, says nothing
IDIOMS = {
    "exercise.compare(",
    "withtorch.no_grad():",
    "generator=torch.Generator().manual_seed(seed)",
    "chosen=torch.randperm(len(labels),generator=generator)[:count]",  # 41's lesson draws like this, too
}  # say nothing, either


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


def in_release(made: Release, *words: str, **settings: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the release's labutils."""
    environment = os.environ | {"PYTHONPATH": str(made.folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {key: str(value) for key, value in settings.items()}
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd=made.folder, capture_output=True, text=True, check=False
    )


# --- Validation ---------------------------------------------------------------------------------------------------


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


@pytest.mark.notebook
@pytest.mark.timeout(300)
def test_a_notebook_validates_by_the_command(made: Release, tmp_path: Path) -> None:
    """With the released packages, down to the cells that its exercises need."""
    name = next(iter(NOTEBOOKS))
    verdicts = []
    for notebook in (released(made, name), solved(made, name)):
        notebook.cells = exercise_cells(notebook)
        nbformat.write(notebook, tmp_path / "notebook.ipynb")
        path = str(tmp_path / "notebook.ipynb")
        done = in_release(made, "-m", "nbgrader", "validate", path, LABUTILS_RUN_DIR=tmp_path)
        assert done.returncode == 0, done.stderr
        verdicts.append(" ".join(done.stdout.split()))
    assert f"VALIDATION FAILED ON {len(release.read_points(NOTEBOOKS[name]))} CELL(S)" in verdicts[0]
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
        if nbgrader_of(cell).get("grade_id") == "two-groups":  # the rates at the wrong layers
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
    for package in ("labutils", "labs"):
        assert {f"{package}/{path.name}" for path in (ROOT / package).glob("*.py")} < names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "book" / "results").rglob("*.json")} < names
    assert {"notebooks/runs.yaml", "constraints.txt", "requirements.txt", "LICENSE", "index.ipynb"} < names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".bin"))]
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
            checks = release.read_points(NOTEBOOKS[notebook.name])
            row = f"| {notebook.question} | {len(checks)} | {sum(checks.values())} |"
            assert f"[{notebook.name}](notebooks/{notebook.name}.ipynb) {row}" in text
        assert f"| all | | {sum(1 for _ in all_checks())} | {sum(all_checks())} |" in text
    assert sum(made.points.values()) == sum(all_checks())


def all_checks() -> Iterator[float]:
    for notebook in NOTEBOOKS.values():
        yield from release.read_points(notebook).values()


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
    for content in ("", "[]", "{}", '{"files": {}}', '{"notebooks": {}, "files": 3}'):
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
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    with pytest.raises(LabsError, match=r"needs nbgrader, .* -c constraints.txt -e '\.\[teach\]'"):
        release.build(small.project, tmp_path / "students")
    assert not (tmp_path / "students").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
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
    (tmp_path / "students" / "more.txt").touch()
    assert cli.main(["release", str(tmp_path / "students")]) == 2
    assert "labs: " in (error := capsys.readouterr().err)
    assert "has been worked in (more.txt)" in error
    assert cli.main(["release", str(tmp_path / "new"), "--data", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "new").exists()
