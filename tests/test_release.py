"""The students' release: complete, without solutions, and graded by nbgrader as it should be.

`test_exercises` tries every exercise, unsolved, solved and wrong. Here one notebook goes through ``nbgrader validate``
with the released packages, and a class of three through a full round of grading.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from traitlets.config import PyFileConfigLoader

from labs import check, cli, freshness, grading, progress, release, runner, submission
from labs.release import Release
from labs.runner import LabsError, Project
from tests.conftest import ROOT, TinyLab
from tests.exercises import NOTEBOOKS, exercise_cells, nbgrader_of

each_notebook = pytest.mark.parametrize("name", list(NOTEBOOKS))
SHORTEST = 80  # characters of a secret


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


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def secrets() -> dict[tuple[str, str], str]:
    """Each solution and hidden test, without blanks; a short one is what anybody may write."""
    return {
        (nbgrader_of(cell)["grade_id"], what): text
        for notebook in NOTEBOOKS.values()
        for cell in notebook.cells
        for what in ("SOLUTION", "HIDDEN TESTS")
        for region in re.findall(rf"(?s)### BEGIN {what}\n(.*?)\n *### END {what}", cell.source)
        if len(text := squeezed(region)) >= SHORTEST
    }


def leaks(text: str) -> list[tuple[str, str]]:
    """The solutions and hidden tests of which a text, without blanks, holds a half."""
    return [
        key
        for key, secret in SECRETS.items()
        if secret[: len(secret) // 2] in text or secret[len(secret) // 2 :] in text
    ]


SECRETS = secrets()


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


def test_no_solution_or_hidden_test_is_in_the_release(made: Release) -> None:
    assert len(SECRETS) > 60
    found = {name: leaks(text) for name, text in contents(made.folder)}
    assert {name: told for name, told in found.items() if told} == {}


def test_the_search_for_leaks_finds_them(tmp_path: Path) -> None:
    cell = next(cell for cell in NOTEBOOKS[CLASS_NOTEBOOK].cells if "BEGIN SOLUTION" in cell.source)
    (tmp_path / "notes.md").write_text(f"Hint:\n\n    {cell.source}")
    with zipfile.ZipFile(tmp_path / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.py", cell.source)
    nbformat.write(new_notebook(cells=[new_code_cell(cell.source)]), tmp_path / "a.ipynb")
    (tmp_path / "other.py").write_text("def f(x):\n    return x")
    told = [(nbgrader_of(cell)["grade_id"], "SOLUTION")]
    found = {name: leaks(text) for name, text in contents(tmp_path)}
    assert found == {"notes.md": told, "more.zip!inner.py": told, "a.ipynb": told, "other.py": []}


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
    whole = copy.deepcopy(NOTEBOOKS[name])
    for cell in whole.cells:
        if nbgrader_of(cell).get("grade"):
            for hidden in re.findall(r"(?s)\n *### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS", cell.source):
                cell.source = cell.source.replace(hidden, "")
    mine = [(cell.cell_type, cell.id, cell.source) for cell in solved(made, name).cells]
    assert mine == [(cell.cell_type, cell.id, cell.source) for cell in whole.cells]


@each_notebook
def test_what_students_get_and_what_they_write_can_be_handed_in(name: str, made: Release) -> None:
    originals = submission.read_originals(made.folder)
    for notebook, is_open in ((released(made, name), True), (solved(made, name), False)):
        file = check.File(f"{name}.ipynb", "", nbformat.writes(notebook).encode(), datetime.min)
        report = check.check(file, originals)
        assert (report.name, report.problems, report.touches) == (name, [], [])
        assert report.notes == ([f"not written yet: {', '.join(answers_of(notebook))}"] if is_open else [])


def answers_of(notebook: NotebookNode) -> list[str]:
    return [mark["grade_id"] for cell in notebook.cells if (mark := nbgrader_of(cell)).get("solution")]


@pytest.mark.notebook
@pytest.mark.timeout(300)
def test_a_notebook_validates_by_the_command(made: Release, tmp_path: Path) -> None:
    """With the released packages, down to the cells that its exercises need. One that is open: see the class."""
    notebook = solved(made, next(iter(NOTEBOOKS)))
    notebook.cells = exercise_cells(notebook)
    nbformat.write(notebook, tmp_path / "solved.ipynb")
    words = ("-m", "nbgrader", "validate", str(tmp_path / "solved.ipynb"))
    done = in_release(made, *words, LABUTILS_RUN_DIR=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("Success! Your notebook passes all the tests.")


# --- A class, graded ----------------------------------------------------------------------------------------------

CLASS_NOTEBOOK = "12_manual_sgd"
MORE = {  # exercises that this class has besides: source to nbgrader's mark
    "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION": {"solution": True},
    "exercise.compare(double(2), 4)\n### BEGIN HIDDEN TESTS\nassert double(123456) == 246912, 'a hidden message'\n"
    "### END HIDDEN TESTS": {"grade": True, "locked": True, "points": 1},
    "*Your answer.*": {"solution": True, "grade": True, "points": 3},
}
SNOOPING = """\
import inspect, os
from labutils import similarity

exercise.compare = lambda *args, **options: None
exercise.attempt = lambda function, without=(): lambda *args: None
print(os.environ)
print(inspect.getsource(similarity))
for path in (r"{lab}/notebooks/{name}.ipynb", r"{course}/source/week/{name}.ipynb", r"{course}/gradebook.db"):
    try:
        print(open(path).read())
    except PermissionError as error:
        print("refused:", error)
"""


@dataclass(frozen=True)
class Course:
    """A course folder whose class of three has been graded."""

    folder: Path
    notebook: NotebookNode

    def points(self, student: str) -> dict[str, float | None]:
        with Gradebook(f"sqlite:///{self.folder / 'gradebook.db'}") as gradebook:
            grades = gradebook.find_submission("week", student).notebooks[0].grades
            return {grade.name: grade.auto_score for grade in grades}

    def graded(self, student: str) -> NotebookNode:
        path = self.folder / "autograded" / student / "week" / f"{CLASS_NOTEBOOK}.ipynb"
        return nbformat.read(path, as_version=4)

    def feedback(self, student: str) -> Path:
        return self.folder / "feedback" / student / "week" / f"{CLASS_NOTEBOOK}.html"

    def notices(self, student: str) -> list[str]:
        with (self.folder / "notices.csv").open(newline="") as file:
            return [row["notice"] for row in csv.DictReader(file) if row["student"] == student]


@pytest.fixture(scope="module")
def course(made: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    """Assign, hand in, grade, give feedback, as the page for instructors says.

    ada has split her first answer and copied a check. bob has written nothing, looks for answers, patches the checks
    and ends the kernel. cyd has deleted a locked cell and a check, turned an answer to text, warns on stderr, and
    exchanges a function of the checks in one exercise.
    """
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(made.folder, folder / "students")
    shutil.copy(made.folder / "nbgrader_config.py", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LABUTILS_RUN_DIR", raising=False)
        patch.setenv("SECRET_TOKEN", "do not tell")
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder / "jupyter"))
        # nbgrader starts `alembic` by its bare name
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        config = PyFileConfigLoader("nbgrader_config.py", str(folder)).load_config()
        config.CourseDirectory.db_url = f"sqlite:///{folder / 'gradebook.db'}"
        api = NbGraderAPI(config=config)
        source = nbformat.from_dict(NOTEBOOKS[CLASS_NOTEBOOK])
        for number, (text, mark) in enumerate(MORE.items()):
            cell = (new_markdown_cell if text.startswith("*") else new_code_cell)(text, id=f"more-{number}")
            cell.metadata["nbgrader"] = {
                **{"grade": False, "solution": False, "locked": False, "task": False, "schema_version": 3},
                **{"grade_id": cell.id, **mark},
            }
            source.cells.append(cell)
        write(source, folder / "source" / "week")
        succeeds(api.generate_assignment("week"))
        assigned = nbformat.read(folder / "release" / "week" / f"{CLASS_NOTEBOOK}.ipynb", as_version=4)
        for student, change in {"ada": of_ada, "bob": of_bob, "cyd": of_cyd}.items():
            handed_in = nbformat.from_dict(assigned)
            code = [cell for cell in source.cells if cell.cell_type == "code"]
            answers = {cell.id: cell.source for cell in code if nbgrader_of(cell).get("solution")}
            change(handed_in, answers, folder)
            write(handed_in, folder / "submitted" / student / "week")
        succeeds(api.autograde("week", "*"))
        succeeds(api.generate_feedback("week", "*"))
        grading.forge(str(folder / "students")).close()
        grading.forge.cache_clear()
        yield Course(folder, assigned)


def write(notebook: NotebookNode, folder: Path) -> None:
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / f"{CLASS_NOTEBOOK}.ipynb")


def solve(notebook: NotebookNode, answers: Mapping[str, str]) -> None:
    for cell in notebook.cells:
        cell.source = answers.get(cell.id, cell.source)


def first(notebook: NotebookNode, kind: str) -> int:
    """The place of the first cell that nbgrader knows as "solution", "grade" or read-only."""
    marks = [nbgrader_of(cell) for cell in notebook.cells]
    return next(at for at, mark in enumerate(marks) if mark and is_kind(mark, kind))


def is_kind(mark: NotebookNode, kind: str) -> bool:
    return mark[kind] if kind in mark else mark["locked"] and not mark["grade"]


def of_ada(notebook: NotebookNode, answers: Mapping[str, str], folder: Path) -> None:
    solve(notebook, answers)
    for kind, text in (("solution", "halved = True"), ("grade", None)):
        at = first(notebook, kind)
        twin = nbformat.from_dict(notebook.cells[at])
        twin.id, twin.source = f"copied-{at}", text or twin.source
        notebook.cells.insert(at, twin)
    notebook.cells[-1].source = "It depends."


def of_bob(notebook: NotebookNode, answers: Mapping[str, str], folder: Path) -> None:
    snooping = SNOOPING.format(lab=ROOT, course=folder, name=CLASS_NOTEBOOK)
    program = f"!cat {ROOT}/notebooks/{CLASS_NOTEBOOK}.ipynb"
    notebook.cells.insert(first(notebook, "solution"), new_code_cell(snooping, id="snooping"))
    notebook.cells.insert(first(notebook, "solution"), new_code_cell(program, id="program"))
    notebook.cells.insert(
        first(notebook, "grade") + 1, new_code_cell("print(In[-2])\nprint(1, flush=True)", id="earlier")
    )
    last = max(
        at for at, cell in enumerate(notebook.cells) if nbgrader_of(cell).get("grade") and cell.cell_type == "code"
    )
    notebook.cells.insert(last, new_code_cell("import os\nos._exit(1)", id="end"))


def of_cyd(notebook: NotebookNode, answers: Mapping[str, str], folder: Path) -> None:
    solve(notebook, answers)
    double = next(cell for cell in notebook.cells if nbgrader_of(cell).get("grade_id") == "more-0")
    double.source = "def double(x):\n    exercise.compare = print\n    return 2 * x"
    lesson = next(cell for cell in notebook.cells if cell.source == "run.source_runs()")
    lesson.source = "raise SystemExit('the lesson ran')"
    at = first(notebook, "solution")
    notebook.cells[at].source += "\n\nimport sys\nprint('a warning', file=sys.stderr)"
    notebook.cells[at] = new_markdown_cell(
        notebook.cells[at].source, id="as-text", metadata=notebook.cells[at].metadata
    )
    for kind in ("grade", "read-only"):
        if any(nbgrader_of(cell) and is_kind(nbgrader_of(cell), kind) for cell in notebook.cells):
            notebook.cells.pop(first(notebook, kind))


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # nbgrader's own use of its database
def test_a_class_is_graded_whatever_one_of_it_did(course: Course, made: Release) -> None:
    ours = [(cell.source, cell.metadata) for cell in released(made, CLASS_NOTEBOOK).cells]
    assert [(cell.source, cell.metadata) for cell in course.notebook.cells[: -len(MORE)]] == ours
    full = release.read_points(course.notebook)
    assert len(full) > 2
    assert course.points("ada") == full | {"more-2": None}, "people grade the words"
    assert course.points("cyd") == full | {"more-1": 0, "more-2": 0}
    assert set(course.points("bob").values()) == {0}
    for student in ("ada", "bob", "cyd"):
        for cell in course.graded(student).cells:
            if cell.metadata["labs"] == "lesson":
                assert not cell.get("outputs"), "the lesson is not run"
    assert not (course.folder / "students" / "results").exists()
    assert f"dropped a copy of the check '{next(iter(full))}'" in course.notices("ada")
    assert f"put back the check '{next(iter(full))}'" in course.notices("cyd")
    assert any(notice.endswith("was there twice: the last one counts") for notice in course.notices("ada"))
    assert not any("replaced" in notice for notice in course.notices("ada"))
    assert "replaced while it ran: labutils.exercise.compare (more-1)" in course.notices("cyd")


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_feedback_tells_no_answer_and_no_hidden_test(course: Course) -> None:
    texts = {
        cell.id: "".join(output.get("text", "") for output in cell.get("outputs", ()))
        for cell in course.graded("bob").cells
    }
    assert texts["snooping"].count("refused: out of reach while a notebook is graded") == 3
    assert "def cka" in texts["snooping"], "what students were given, they may print"
    assert "do not tell" not in texts["snooping"]
    told = course.notices("bob")
    for words in (
        "replaced while it ran: labutils.exercise.compare (an added cell)",
        "replaces exercise.attempt (an added cell)",
        "reads the text of earlier cells: In (an added cell)",
        "gives the command !cat",
        "the kernel died",
    ):
        assert any(notice.startswith(words) for notice in told), words
    page = course.feedback("bob").read_text()
    text = " ".join(BeautifulSoup(page, "html.parser").get_text().split())
    assert "is not written yet" in text
    assert "The kernel died in this cell or in an earlier one." in text
    assert "no program is started while a notebook is graded" in text
    assert leaks(squeezed(text)) == []
    assert "a hidden message" not in page
    assert "a hidden message" in "".join(cell.source for cell in course.graded("bob").cells)
    lesson = next(cell.source for cell in course.notebook.cells if cell.source.startswith("## The data"))
    assert lesson.splitlines()[-1][:40] not in text
    assert f'src="{grading.MATHJAX}"' in page
    assert (course.feedback("bob").parent / grading.MATHJAX).is_file(), "formulas need no network"


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_the_points_of_each_check_are_exported(course: Course, tmp_path: Path) -> None:
    with Gradebook(f"sqlite:///{course.folder / 'gradebook.db'}") as gradebook:
        grading.Grades(to=str(tmp_path / "points.csv")).export(gradebook)
    with (tmp_path / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    full = release.read_points(course.notebook)
    assert [row["check"] for row in rows] == [*full] * 3
    assert {row["check"]: float(row["of"]) for row in rows} == full
    [words] = [row for row in rows if row["student"] == "ada" and row["check"] == "more-2"]
    assert (words["assignment"], words["notebook"], words["needs a look"]) == ("week", CLASS_NOTEBOOK, "yes")
    assert sum(float(row["points"]) for row in rows if row["student"] == "cyd") == sum(full.values()) - 4


def succeeds(result: dict[str, object]) -> None:
    assert result["success"], f"{result.get('error')}\n{result.get('log')}"


# --- The folder ---------------------------------------------------------------------------------------------------


def test_the_release_is_complete(made: Release) -> None:
    names = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert {f"notebooks/{name}.ipynb" for name in NOTEBOOKS} < names
    for package in ("labutils", "labs"):
        assert {f"{package}/{path.name}" for path in (ROOT / package).glob("*.py")} < names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "book" / "results").rglob("*.json")} < names
    assert {
        "notebooks/runs.yaml",
        "constraints.txt",
        "requirements.txt",
        "LICENSE",
        "index.ipynb",
        "release.json",
    } < names
    assert {"nbgrader_config.py", "originals.zip"} < names
    for name, original in submission.read_originals(made.folder).items():
        assert original == json.loads((made.folder / "notebooks" / f"{name}.ipynb").read_text())
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


def test_an_open_exercise_does_not_fail_a_run_of_the_release(
    small: TinyLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = release.build(small.project, tmp_path / "students")
    project = Project(made.folder, package=made.folder / "labutils")
    out = tmp_path / "results"

    def run(project: Project) -> runner.Result:
        chosen = runner.select(runner.load_notebooks(project))
        with progress.showing() as show:
            return runner.execute(project, chosen, out, on_event=show)[0]

    done = run(project)
    assert (done.state, done.failure, done.open) == ("done", None, ("e41", "e37"))
    assert run(project).state == "fresh"
    told = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"21_fit:quick: done in .* s, exercises open: e41, e37", told[0])
    assert told[1] == "21_fit:quick: up to date, exercises open: e41, e37"
    path = made.folder / "notebooks" / "21_fit.ipynb"
    path.write_text(path.read_text().replace("raise NotImplementedError()", "x = len"))
    assert freshness.status(project, done.run, out).changed == ("exercise",)
    assert run(project).open == ("e37",)
    failed = run(small.project)
    assert failed.failure is not None, "with the solutions, it is a fault of the lab"
    assert "'exercise' is not defined" in failed.failure.error


def test_a_release_replaces_nothing(small: TinyLab, tmp_path: Path) -> None:
    place = tmp_path / "students"
    place.mkdir()
    release.build(small.project, place)  # an empty folder is no loss
    (tmp_path / "file").touch()
    for there in (place, tmp_path / "file"):
        with pytest.raises(LabsError, match="is there already: move it away, or name another folder"):
            release.build(small.project, there)


def test_a_release_that_fails_leaves_nothing(small: TinyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release.jinja2, "Environment", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        release.build(small.project, tmp_path / "out" / "lab")
    assert list((tmp_path / "out").iterdir()) == []


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
    assert cli.main(["release", str(tmp_path / "students")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["release", str(tmp_path / "new"), "--data", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "new").exists()
