"""``labs check``: what it says of notebooks that were damaged in every way, and what it makes of them."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from labs import check, cli, submission
from labs.check import File
from labs.fence import Seal
from labs.runner import LabsError
from labs.submission import Cell, Document
from labutils import exercise
from tests.conftest import ROOT

NAME = "21_fit"


def code(text: str, id: str, mark: dict[str, Any] | None = None, tags: tuple[str, ...] = ()) -> Cell:
    full = {"schema_version": 3, "task": False, "grade": False, "solution": False, "locked": False} | (mark or {})
    metadata = ({"tags": list(tags)} if tags else {}) | ({"nbgrader": full} if mark else {})
    return {"id": id, "cell_type": "code", "metadata": metadata, "source": text, "outputs": [], "execution_count": None}


def text(words: str, id: str) -> Cell:
    return {"id": id, "cell_type": "markdown", "metadata": {}, "source": words}


def document(*cells: Cell) -> Document:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": list(cells), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


ANSWER = {"grade_id": "twice", "solution": True}
ORIGINAL = document(
    text("# Fits\n\nWho fits?", "title"),
    code("n = 3  # how many", "p", tags=("parameters",)),
    code("import torch\nfrom labutils import exercise, record\n\nrun = record.start('21_fit', globals())", "s"),
    code("dataset = 4\nhistory = dataset * n", "lesson"),
    text("## Exercises", "exercises"),
    code("CASES = [1, 2]", "case", {"grade_id": "twice-case", "locked": True}),
    code("def twice(x):\n    raise NotImplementedError()", "answer", ANSWER),
    code(
        "for x in CASES:\n    exercise.compare(twice(x), 2 * x)",
        "check",
        {"grade_id": "twice-test", "grade": True, "locked": True, "points": 2},
    ),
)
ORIGINALS = {NAME: ORIGINAL, "22_other": document(text("# Other", "o"), code("1 + 1", "q"))}
SOLVED = "def twice(x):\n    return 2 * x"


def handed_in(**sources: str) -> Document:
    """A student's notebook; cells get other texts by their ids."""
    notebook = copy.deepcopy(ORIGINAL)
    for cell in notebook["cells"]:
        cell["source"] = ({"answer": SOLVED} | sources).get(cell["id"], cell["source"])
    return notebook


def place(notebook: Document, id: str) -> int:
    return [cell["id"] for cell in notebook["cells"]].index(id)


def file(content: Any, label: str = f"{NAME}.ipynb", student: str = "", when: int = 0) -> File:
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return File(label, student, content, datetime(2026, 1, 1 + when))


def report(notebook: Any, label: str = f"{NAME}.ipynb") -> check.Report:
    return check.check(file(notebook, label), ORIGINALS)


def sources(notebook: Document) -> dict[str, str]:
    return {cell["id"]: submission.source(cell) for cell in notebook["cells"]}


# --- What is wrong ------------------------------------------------------------------------------------------------


def drop(id: str) -> Callable[[Document], None]:
    return lambda notebook: notebook["cells"].pop(place(notebook, id))


def twin(id: str) -> Callable[[Document], None]:
    """As JupyterLab copies a cell: another id, the same metadata."""
    return lambda notebook: notebook["cells"].insert(
        place(notebook, id), copy.deepcopy(notebook["cells"][place(notebook, id)]) | {"id": "copied"}
    )


def move_up(id: str) -> Callable[[Document], None]:
    return lambda notebook: notebook["cells"].insert(2, notebook["cells"].pop(place(notebook, id)))


def edit(which: str, **what: Any) -> Callable[[Document], None]:
    return lambda notebook: notebook["cells"][place(notebook, which)].update(what)


def kernel(**what: str) -> Callable[[Document], None]:
    return lambda notebook: notebook["metadata"].update(kernelspec=what)


WRONG: list[tuple[Callable[[Document], None], str]] = [
    (drop("check"), "the check 'twice-test' is missing"),
    (drop("answer"), "the answer 'twice' is missing"),
    (drop("case"), "the locked cell 'twice-case' is missing"),
    (drop("p"), "the parameters cell is missing"),
    (drop("s"), "the set-up cell is missing"),
    (twin("answer"), "the answer 'twice' is there more than once: delete the copy"),
    (twin("check"), "the check 'twice-test' is there more than once"),
    (move_up("check"), "the check 'twice-test' stands before the answer 'twice', and belongs behind it"),
    (edit("answer", cell_type="markdown"), "the answer 'twice' is a cell of kind markdown: select it and press Y"),
    (edit("answer", cell_type="raw"), "is a cell of kind raw: select it and press Y"),
    (edit("check", source="pass"), "the check 'twice-test' has been changed, but grading uses the original"),
    (edit("case", source="CASES = []"), "the locked cell 'twice-case' has been changed"),
    (edit("answer", metadata={}), "the answer 'twice' has lost its mark"),
    (edit("answer", metadata={}, id="pasted"), "the answer 'twice' has lost its mark"),
    (edit("answer", source="def twice(x):\n    retrun 2"), "the answer 'twice' is not Python: look at line 2"),
    (kernel(name="ir", language="R"), "is written for R: choose the kernel Python 3"),
]


@pytest.mark.parametrize(("damage", "words"), WRONG)
def test_a_problem_is_named_and_mended(damage: Callable[[Document], None], words: str) -> None:
    notebook = handed_in()
    damage(notebook)
    found = report(notebook)
    assert [problem for problem in found.problems if words in problem]
    mended = submission.repaired(notebook, ORIGINAL)
    kept = [cell for cell in mended["cells"] if submission.needed(cell)]
    assert [submission.needed(cell) for cell in kept] == [
        *(submission.PARAMETERS, submission.SET_UP, "twice-case", "twice", "twice-test")
    ]
    for cell, right in zip(kept, [cell for cell in ORIGINAL["cells"] if submission.needed(cell)], strict=True):
        assert (cell["id"], cell["cell_type"], cell["metadata"]) == (right["id"], right["cell_type"], right["metadata"])
        if submission.is_locked(cell):
            assert cell["source"] == right["source"]
    written = [submission.source(cell) for cell in notebook["cells"] if "def twice" in submission.source(cell)]
    assert sources(mended)["answer"] == (written or [sources(ORIGINAL)["answer"]])[-1]
    again = report(mended)
    assert [problem for problem in again.problems if "not Python" not in problem] == []


def test_a_good_notebook_is_ready() -> None:
    notebook = handed_in(lesson="dataset = 5", p="n = 4")
    notebook["cells"].insert(4, code("print(dataset)", "mine"))
    notebook["cells"][6]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    found = report(notebook)
    assert (found.problems, found.notes, found.touches, found.name) == ([], [], [], NAME)
    assert report(ORIGINAL).problems == []
    assert report(ORIGINAL).notes == ["not written yet: twice"]
    assert (
        "uses the kernel 'torch-env'"
        in report(handed_in() | {"metadata": {"kernelspec": {"name": "torch-env"}}}).notes[0]
    )
    assert report(handed_in() | {"metadata": {"kernelspec": "python"}}).problems == []
    assert report(handed_in(answer="%time 1\ndef twice(x):\n    return (7\n    % x)\n!ls")).problems == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"\x00\xff", "it is not JSON"),
        (b"<!DOCTYPE html>", "it is not JSON"),
        (b'{"cells": [\n<<<<<<< HEAD\n1\n=======\n2\n>>>>>>> b\n]}', "git has left the marks of a conflict"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[1]", "it is JSON of another kind"),
        (b'{"nbformat": 3, "worksheets": []}', "it has format 3, expected 4"),
        (b'{"nbformat": 4, "cells": [3]}', "its cells are damaged"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": 3}]}', "its cells are damaged"),
        (b'{"nbformat": 4, "cells": [], "metadata": 3}', "its metadata are damaged"),
        (json.dumps(document(code("print(1)", "x"))).encode(), "is no notebook of this release"),
        (json.dumps(document()).encode(), "is no notebook of this release"),
    ],
)
def test_what_is_no_notebook_of_the_release_is_said(content: bytes, words: str) -> None:
    [problem] = report(content).problems
    assert words in problem


def test_a_renamed_or_large_notebook() -> None:
    [problem] = report(handed_in(), "21_fit-Copy1.ipynb").problems
    assert problem == "is 21_fit: name it 21_fit.ipynb, as nothing else is graded"
    assert "is 21_fit" in report(handed_in(), "22_other.ipynb").problems[0]
    large = handed_in()
    large["cells"][3]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * check.LARGE}]
    assert "is large (10 MiB): clear the outputs" in report(large).problems[0]
    assert "too large to be read" in check.check(File("a.ipynb", "", None, datetime.min), ORIGINALS).problems[0]


# --- Mending ------------------------------------------------------------------------------------------------------


def test_what_a_student_added_stays_where_it_was() -> None:
    """A split answer, a helper above it, notes: as nbgrader's ids may be there twice, the last one is the answer."""
    notebook = handed_in(title="# My title")
    at = place(notebook, "answer")
    first = copy.deepcopy(notebook["cells"][at]) | {"id": "half", "source": "FACTOR = 2"}
    notebook["cells"][at]["source"] = "def twice(x):\n    return FACTOR * x"
    stranger = code("helper = 1", "x y", {"grade_id": "of-another-notebook", "solution": True})
    notebook["cells"][at:at] = [text("my notes", "answer"), stranger, first]
    cells, notes = submission.rebuild(notebook, ORIGINAL)
    assert notes == ["the answer 'twice' was there twice: the last one counts"]
    assert [(submission.source(cell), origin) for cell, origin in cells][5:] == [
        ("CASES = [1, 2]", "exercise"),
        ("my notes", "added"),
        ("helper = 1", "added"),
        ("FACTOR = 2", "added"),
        ("def twice(x):\n    return FACTOR * x", "exercise"),
        (submission.source(ORIGINAL["cells"][-1]), "exercise"),
    ]
    assert (cells[0][0]["source"], cells[0][1]) == ("# My title", "changed")
    assert all("nbgrader" not in cell["metadata"] for cell, origin in cells if origin == "added")
    ids = [cell["id"] for cell, _ in cells]
    assert len(set(ids)) == len(ids), "ids are unique"
    names: dict[str, Any] = {"exercise": exercise}
    for cell, origin in cells:
        if cell["cell_type"] == "code" and (origin == "added" or submission.mark(cell)):
            exec(cell["source"], names)


def test_a_notebook_from_colab_is_the_same() -> None:
    """It has the ids elsewhere, sources as lists, and other metadata."""
    notebook = handed_in()
    for cell in notebook["cells"]:
        cell["metadata"]["id"] = cell.pop("id")
        cell["source"] = cell["source"].splitlines(keepends=True)
    notebook["nbformat_minor"] = 0
    assert report(notebook).problems == []
    assert [origin for _, origin in submission.rebuild(notebook, ORIGINAL)[0]] == (
        ["lesson", "exercise", "exercise", "lesson", "lesson", *["exercise"] * 3]
    )
    for cell in notebook["cells"]:
        cell["metadata"].pop("id")
    assert report(notebook).problems == []
    assert "added" not in [origin for _, origin in submission.rebuild(notebook, ORIGINAL)[0]]


@pytest.mark.parametrize(
    ("answer", "added", "names"),
    [
        (SOLVED, "print(dataset)", []),
        ("def twice(dataset):\n    return dataset + dataset", "", []),
        ("def twice(x):\n    return x * dataset / 2", "", ["dataset"]),
        ("def twice(x):\n    return helper(x)", "def helper(x):\n    return x * history", ["history"]),
        ("def twice(x):\n    return x * dataset", "dataset = 2", []),
        ("def twice(x):\n    return torch.tensor(n * x) + len(CASES)", "", []),
    ],
)
def test_what_an_answer_takes_from_the_lesson_is_seen(answer: str, added: str, names: list[str]) -> None:
    notebook = handed_in(answer=answer)
    notebook["cells"].insert(5, code(added, "mine"))
    assert submission.lesson_names(submission.rebuild(notebook, ORIGINAL)[0]) == names
    assert any("of the lesson" in note for note in report(notebook).notes) == bool(names)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("exercise.compare = lambda *a, **k: None", "replaces exercise.compare (the answer 'twice')"),
        ("torch.allclose = None", "replaces torch.allclose"),
        ("import numpy as np\ndel np.isclose", "replaces np.isclose"),
        ("exercise = object()", "gives the name exercise to something else"),
        ("import inspect", "looks into the running program: inspect"),
        ("import sys\nsys._getframe(1).f_locals", "looks into the running program: f_locals"),
        ("from unittest import mock", "replaces what others use: mock"),
        ("import os\nos.system('ls')", "starts a program: system"),
        ("from subprocess import run", "starts a program: subprocess"),
        ("!cat /etc/passwd", "gives the command !cat /etc/passwd"),
        ("%%bash\nls", "gives the command %%bash"),
        ("open('../21_fit.ipynb')", "reads files: open"),
        ("print(In[-1])", "reads the text of earlier cells: In"),
        ("twice.__code__", "reaches behind names: __code__"),
        ("setattr(exercise, 'compare', print)", "reaches behind names: setattr"),
    ],
)
def test_touches_are_seen(answer: str, words: str) -> None:
    assert words in " | ".join(report(handed_in(answer=answer)).touches)


def test_ordinary_code_touches_nothing() -> None:
    answer = """\
    @torch.no_grad()
    def twice(x, model=None):
        model.eval()
        model.weight.data = model.weight * 2
        x.grad = None
        table = [model(a)[0] % 2 for a in x]
        return torch.compile(model)(x), table.index(3)
    """
    assert report(handed_in(answer=textwrap.dedent(answer))).touches == []


# --- Folders and archives -----------------------------------------------------------------------------------------


def archive(*members: tuple[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            made.writestr(name, content if isinstance(content, bytes) else json.dumps(content))
    return buffer.getvalue()


def collected(folder: Path, content: bytes) -> list[File]:
    path = folder / "class.zip"
    path.write_bytes(content)
    return list(check.collect(path))


def test_the_archives_of_learning_platforms(tmp_path: Path) -> None:
    moodle = archive(
        ("Ada Lovelace_123_assignsubmission_file_/21_fit.ipynb", handed_in()),
        ("Bob_124_assignsubmission_file_/work/.ipynb_checkpoints/21_fit-checkpoint.ipynb", handed_in()),
        (
            "Bob_124_assignsubmission_file_/work.zip",
            archive(("work/21_fit.ipynb", handed_in()), ("__MACOSX/._a.ipynb", b"")),
        ),
        ("Bob_124_assignsubmission_file_/photo.png", b"png"),
    )
    found = collected(tmp_path, moodle)
    assert [(one.student, one.label) for one in found] == [
        ("Ada Lovelace", "Ada Lovelace_123_assignsubmission_file_/21_fit.ipynb"),
        ("Bob", "Bob_124_assignsubmission_file_/work.zip/work/21_fit.ipynb"),
    ]
    ilias = archive(("week1/ada_1/21_fit.ipynb", handed_in()), ("week1/bob_2/21_fit.ipynb", handed_in()))
    assert [one.student for one in collected(tmp_path, ilias)] == ["ada_1", "bob_2"]
    canvas = archive(("adalovelace_12_345_21_fit-1.ipynb", handed_in()))
    [one] = collected(tmp_path, canvas)
    assert check.check(one, ORIGINALS).student == "adalovelace_12_345"


def test_a_folder_is_read_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "ada" / "week1").mkdir(parents=True)
    (tmp_path / "ada" / "week1" / "21_fit.ipynb").write_text(json.dumps(handed_in()))
    (tmp_path / "ada" / "link.ipynb").symlink_to(tmp_path / "ada" / "week1" / "21_fit.ipynb")
    (tmp_path / "bob").symlink_to(tmp_path / "ada")
    os.mkfifo(tmp_path / "ada" / "pipe.ipynb")
    [one] = check.collect(tmp_path)
    assert (one.student, one.label) == ("ada", "ada/week1/21_fit.ipynb")
    with pytest.raises(LabsError, match="there is no such file"):
        list(check.collect(tmp_path / "nothing"))


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    evil = archive(
        *(
            (f"{name}/21_fit.ipynb", handed_in())
            for name in ("../../evil", "/etc", "..\\..\\evil", "C:\\x", "a\x07\nb")
        ),
        ("..", b"3"),
    )
    reports = [check.check(one, ORIGINALS) for one in collected(tmp_path, evil)]
    check.repair(reports, ORIGINALS, tmp_path / "out")
    assert {path.parent.parent for path in tmp_path.rglob("21_fit.ipynb")} <= {tmp_path / "out", tmp_path}
    assert not any(path.name.startswith((".", " ")) for path in (tmp_path / "out").iterdir())
    assert all(one.isprintable() or one == "\n" for one in check.describe(reports[-1], for_instructor=True))


def test_archives_that_are_bombs_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LARGEST", 100_000)
    monkeypatch.setattr(check, "MOST_FILES", 20)
    [one] = collected(tmp_path, archive(("a/21_fit.ipynb", b" " * 10_000_000)))
    assert one.content is None
    inner = archive(("21_fit.ipynb", handed_in()))
    for _ in range(5):  # an archive in an archive in an archive
        inner = archive(("more.zip", inner))
    assert collected(tmp_path, inner) == []
    with pytest.raises(LabsError, match="holds 21 files: more than 20 are not read"):
        collected(tmp_path, archive(*((f"{i}.txt", b"") for i in range(21))))
    whole = archive(("a/21_fit.ipynb", handed_in()))
    for damaged in (b"PK", whole[:-30], whole.replace(b"21_fit", b"22_fit", 1)):
        with pytest.raises(LabsError, match="cannot be read as a zip archive"):
            collected(tmp_path, damaged)
    locked = bytearray(whole)
    for start in (whole.index(b"PK\x03\x04") + 6, whole.index(b"PK\x01\x02") + 8):
        locked[start] |= 1  # says that it is encrypted
    with pytest.raises(LabsError, match=r"cannot be read as a zip archive: .*password|encrypted"):
        collected(tmp_path, bytes(locked))


def test_repair_takes_the_newest_and_overwrites_nothing(tmp_path: Path) -> None:
    files = [
        file(handed_in(answer="# old"), "ada/21_fit.ipynb", "ada"),
        file(handed_in(answer="# new"), "ada/21_fit (1).ipynb", "ada", when=2),
        file(b"{", "bob/21_fit.ipynb", "bob"),
    ]
    reports = [check.check(one, ORIGINALS) for one in files]
    assert check.repair(reports, ORIGINALS, tmp_path, "week1") == 1
    written = tmp_path / "ada" / "week1" / "21_fit.ipynb"
    assert sources(json.loads(written.read_text()))["answer"] == "# new"
    assert [path.name for path in tmp_path.iterdir()] == ["ada"]
    assert check.repair(reports, ORIGINALS, tmp_path, "week2") == 1
    before = written.read_bytes()
    with pytest.raises(LabsError, match=r"week1/21_fit.ipynb is there already: move it away"):
        check.repair(reports[:1], ORIGINALS, tmp_path, "week1")
    assert written.read_bytes() == before


# --- The command --------------------------------------------------------------------------------------------------


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of a release as the command looks at, in which the test is."""
    folder = tmp_path / "release"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "runs.yaml").touch()
    members = ((f"{name}.ipynb", original) for name, original in ORIGINALS.items())
    (folder / submission.ORIGINALS).write_bytes(archive(*members))
    monkeypatch.chdir(folder)
    return folder


def test_a_student_checks_a_file(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = release / "notebooks" / "21_fit.ipynb"
    path.write_text(json.dumps(handed_in()))
    assert cli.main(["check", str(path)]) == 0
    assert capsys.readouterr().out == "21_fit.ipynb: ready\n"
    damaged = handed_in(answer="import inspect")
    drop("check")(damaged)
    path.write_text(json.dumps(damaged))
    assert cli.main(["check", str(path)]) == 1
    assert capsys.readouterr().out == (
        "21_fit.ipynb: 1 problem\n    the check 'twice-test' is missing: take it from a fresh copy of the notebook\n"
        "labs check --repair NEW_FOLDER FILE puts the answers into clean notebooks\n"
    )
    assert cli.main(["check", str(path), "--repair", "clean"]) == 0
    assert "clean notebooks with the answers: 1, in clean" in capsys.readouterr().out
    assert cli.main(["check", "clean/21_fit.ipynb"]) == 0
    assert cli.main(["check", "nothing.ipynb"]) == 2


def test_an_instructor_checks_a_class(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "students").symlink_to(release)
    (tmp_path / "class.zip").write_bytes(
        archive(("ada/21_fit.ipynb", handed_in(answer="import inspect")), ("bob/fit.ipynb", handed_in()))
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "class.zip"]) == 1
    told = capsys.readouterr().out
    assert "look at: looks into the running program: inspect (the answer 'twice')" in told
    assert "1 of 2 notebooks are ready" in told
    assert cli.main(["check", "class.zip", "--repair", "submitted", "--assignment", "week1"]) == 0
    assert (tmp_path / "submitted" / "bob" / "week1" / "21_fit.ipynb").is_file()
    (tmp_path / "students").unlink()
    assert cli.main(["check", "class.zip"]) == 2
    assert "is not a folder that `labs release` made" in (error := capsys.readouterr().err)
    assert "--release DIR names another folder" in error
    assert cli.main(["check", "class.zip", "--release", str(release)]) == 1
    (tmp_path / "empty").mkdir()
    assert cli.main(["check", "empty", "--release", str(release)]) == 2
    assert "there is no notebook in empty" in capsys.readouterr().err


def test_it_needs_neither_nbgrader_nor_torch() -> None:
    script = "import sys; from labs import check; print({'nbgrader', 'torch', 'nbformat'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- The fence ----------------------------------------------------------------------------------------------------

_BEHIND_IT = """
import os, sqlite3, subprocess, sys
from labs import fence

lab, course, scratch = sys.argv[1:]
fence.stand({lab: "", f"{lab}/.venv": "r", course: "", scratch: "rw", "/dev": "rw"})
os.chdir(scratch)
tries = {
    "read": lambda: open(f"{lab}/solution"),
    "relative": lambda: open(f"../{os.path.basename(lab)}/solution"),
    "bytes": lambda: os.open(os.fsencode(lab) + b"/solution", os.O_RDONLY),
    "link": lambda: (os.symlink(lab, "l"), open("l/solution")),
    "list": lambda: os.listdir(course),
    "scan": lambda: list(os.walk(course, onerror=lambda error: (_ for _ in ()).throw(error))),
    "database": lambda: sqlite3.connect(f"{course}/gradebook.db"),
    "write elsewhere": lambda: open(f"{lab}/.venv/library", "w"),
    "remove": lambda: os.remove(f"{lab}/.venv/library"),
    "program": lambda: subprocess.run(["true"]),
    "shell": lambda: os.system("true"),
    "fork": os.fork,
    "parent": lambda: open(f"/proc/{os.getppid()}/environ"),
    "library": lambda: open(f"{lab}/.venv/library").close(),
    "own": lambda: (open("mine", "w").close(), os.listdir("."), sqlite3.connect(":memory:"), open("/dev/null", "w")),
    "self": lambda: open("/proc/self/status").close(),
}
for name, act in tries.items():
    try:
        act()
    except PermissionError as error:
        print(name, "refused")
    else:
        print(name, "done")
"""


def test_the_fence(tmp_path: Path) -> None:
    lab, course, scratch = (tmp_path / name for name in ("lab", "course", "scratch"))
    for folder in (lab / ".venv", course, scratch):
        folder.mkdir(parents=True)
    for path in (lab / "solution", lab / ".venv" / "library"):
        path.touch()
    words = [sys.executable, "-c", _BEHIND_IT, *map(str, (lab, course, scratch))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    told = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert {name for name, how in told.items() if how == "done"} == {"library", "own", "self"}
    assert len(told) == 16
    assert (lab / ".venv" / "library").exists()


def test_what_was_replaced_is_noticed_and_put_back() -> None:
    import numpy as np

    seal, names = Seal(), {"exercise": exercise}
    assert seal.mend(names) == []
    compare, attempt_code, isclose = exercise.compare, exercise.attempt.__code__, np.isclose
    try:
        exercise.compare = print
        exercise.attempt.__code__ = (lambda function, without=(): function).__code__
        np.isclose = print
        names["exercise"] = object()
    finally:
        found = seal.mend(names)
    assert sorted(found) == [
        *("labutils.exercise.compare", "numpy.isclose", "the code of labutils.exercise.attempt", "the name exercise"),
    ]
    assert (exercise.compare, exercise.attempt.__code__, np.isclose) == (compare, attempt_code, isclose)
    assert names["exercise"] is exercise
    with exercise.without("models.count_parameters"):
        pass
    assert seal.mend({}) == [], "a check leaves everything as it was"
