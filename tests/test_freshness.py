"""labs.freshness: edit this, and a result stays fresh; edit that, and it does not; what a kill leaves; checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from labs import freshness, jupyter, runner
from labs.freshness import Failure
from labs.jupyter import Job, Outcome
from labutils import identity
from tests.conftest import TinyLab

MODELS = '''"""Networks."""

SIZE = 3

def build():
    """Build it."""
    return SIZE

def other():
    return 1
'''
CELLS = (
    "from labutils import models",
    "def double(x):\n    '''Twice.'''\n    return 2 * x  # as said",
    "print(double(models.build()) + n)",
)
AT = "2026-11-21T10:00:00+00:00"


def finish(lab: TinyLab, name: str = "11", device: str | None = None, **more: Any) -> Path:
    """Leave a result as a run leaves it that is done now."""
    run = replace(lab.run(name), device=device)
    folder = run.folder(lab.results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("{}")
    outcome = Outcome(AT, 2.0, **more)
    freshness.write_record(lab.project, run, folder, freshness.stamp(lab.project, run), outcome)
    assert lab.state(name).state == ("failed" if outcome.failure else "done")
    return folder


@pytest.fixture
def lab(tiny_lab: TinyLab) -> TinyLab:
    """A notebook with runs, all of them done."""
    (tiny_lab.project.package / "models.py").write_text(MODELS)
    tiny_lab.add("11_fit", *CELLS, defaults="n = 3  # how many\nlr = 0.1  # rate")
    tiny_lab.name_runs({"11_fit": {"big": {"n": 10}}})
    finish(tiny_lab)
    finish(tiny_lab, "11:big")
    return tiny_lab


def changed(lab: TinyLab, name: str = "11") -> tuple[str, ...]:
    status = lab.state(name)
    assert status.state == ("stale" if status.changed else "done")
    return status.changed


def edit(lab: TinyLab, change: Callable[[nbformat.NotebookNode], object]) -> None:
    path = lab.project.notebooks / "11_fit.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def source(number: int, old: str, new: str) -> Callable[[nbformat.NotebookNode], object]:
    """A change of a cell's text."""

    def change(notebook: nbformat.NotebookNode) -> None:
        assert old in notebook.cells[number].source
        notebook.cells[number].source = notebook.cells[number].source.replace(old, new)

    return change


def exercise(*texts: str, at: int | None = None) -> Callable[[nbformat.NotebookNode], object]:
    def change(notebook: nbformat.NotebookNode) -> None:
        place = len(notebook.cells) if at is None else at
        notebook.cells[place:place] = [
            new_code_cell(text, metadata={"nbgrader": {"solution": True, "grade": False}}) for text in texts
        ]

    return change


KEPT = {
    "prose": source(0, "Title", "New title"),
    "more prose": lambda notebook: notebook.cells.insert(2, new_markdown_cell("Look.")),
    "a comment": source(3, "  # as said", "  # doubles"),
    "a docstring": source(3, "'''Twice.'''", '"""Two times."""\n    # more'),
    "layout": source(4, "double(models.build())", "double(\n    models.build()\n)"),
    "the comment of a parameter": source(1, "how many", "number"),
    "tags": lambda notebook: notebook.cells[4].metadata.update(tags=["nbval-check-output"]),
    "outputs": lambda notebook: notebook.cells[4].update(
        outputs=[nbformat.v4.new_output("stream", text="3")], execution_count=7
    ),
    "metadata": lambda notebook: notebook.metadata.update(more=1),
    "an exercise": exercise("def answer():\n    return 42", "assert answer() == 42", "%magic"),
    "an exercise between": exercise("def answer():\n    return 42", at=3),
}
COUNTED = {
    "code": source(4, "+ n", "- n"),
    "a new cell": lambda notebook: notebook.cells.append(new_code_cell("n")),
    "an order": lambda notebook: notebook.cells.insert(2, notebook.cells.pop()),
    "a text shown": lambda notebook: notebook.cells.append(new_code_cell("'shown'")),
    "a magic": lambda notebook: notebook.cells.append(new_code_cell("%time n")),
    "an exercise in use": exercise("def double(x):\n    return 3 * x", at=4),
}


@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT)
def test_what_does_not_compute_does_not_outdate(change: Callable[[Any], object], lab: TinyLab) -> None:
    edit(lab, change)
    assert (changed(lab), changed(lab, "11:big")) == ((), ())


@pytest.mark.parametrize("change", COUNTED.values(), ids=COUNTED)
def test_code_cells_count(change: Callable[[Any], object], lab: TinyLab) -> None:
    edit(lab, change)
    assert "notebook" in changed(lab)
    assert "notebook" in changed(lab, "11:big")


def test_of_an_exercise_in_use_a_change_counts(lab: TinyLab) -> None:
    edit(lab, exercise("def double(x):\n    return 3 * x", at=4))
    finish(lab)
    edit(lab, source(4, "return 3", "'''Thrice.'''\n    return 3"))
    assert changed(lab) == ()
    edit(lab, source(4, "3 * x", "4 * x"))
    assert changed(lab) == ("notebook",)


def test_of_labutils_the_code_counts_that_is_used(lab: TinyLab) -> None:
    package = lab.project.package

    def rewrite(old: str, new: str) -> tuple[str, ...]:
        assert old in MODELS
        (package / "models.py").write_text(MODELS.replace(old, new))
        return changed(lab)

    assert rewrite('"""Build it."""', '"""Build a network."""  # soon') == ()
    assert rewrite('"""Networks."""', '"""All networks."""\n') == ()
    assert rewrite("return 1", "return 2") == ()
    assert rewrite("return SIZE", "return SIZE + 1") == ("code models.build",)
    assert rewrite("SIZE = 3", "SIZE = 4") == ("code models.SIZE",)
    assert rewrite("return SIZE", "return A + B\n\nA = B = 1") == ("code models.A, models.B and 2 more",)
    assert rewrite("SIZE = 3", "SIZE = 3") == ()
    (package / "new.py").write_text("x = 1")
    assert changed(lab) == ()
    edit(lab, source(2, "import models", "import models, new"))
    assert changed(lab) == ("notebook",)
    edit(lab, source(4, "+ n", "+ new.x"))
    assert changed(lab) == ("code new.x", "notebook")


def test_how_other_runs_are_shown_does_not_count(lab: TinyLab) -> None:
    package = lab.project.package
    (package / "published.py").write_text("def load():\n    return []\n")
    (package / "models.py").write_text(
        "from labutils import published\n" + MODELS.replace("return SIZE", "return published.load()")
    )
    finish(lab)
    (package / "published.py").write_text("def load():\n    return [1]\n")
    assert changed(lab) == ()
    (package / "models.py").write_text("from labutils import published\n" + MODELS)
    assert changed(lab) == ("code models.SIZE, models.build",)


def test_parameters_count_for_their_run_only(lab: TinyLab) -> None:
    lab.name_runs({"11_fit": {"big": {"n": 11}, "new": {}}})
    assert changed(lab) == ()
    assert changed(lab, "11:big") == ("parameters",)
    assert lab.state("11:new").state == "not run"
    lab.name_runs({"11_fit": {"big": {"n": 10}}})
    edit(lab, source(1, "n = 3", "n = 4"))  # a default, in whose place the big run has a value of its own
    assert (changed(lab), changed(lab, "11:big")) == (("parameters",), ())
    edit(lab, source(1, "lr = 0.1", "lr = 0.2"))
    assert changed(lab, "11:big") == ("parameters",)


def test_versions_count(lab: TinyLab, monkeypatch) -> None:
    now = identity.versions()
    for other in ({"python": "3.99.0"}, {"torch": "0.0"}, {"scipy": "0.0"}):
        monkeypatch.setattr(identity, "versions", lambda other=other: now | other)
        assert changed(lab) == ("versions",)


def test_the_device_counts_where_one_is_asked_for(lab: TinyLab) -> None:
    lab.add("12_device", defaults="device = 'cpu'  # where")

    def state(device: str | None) -> tuple[str, ...]:
        return freshness.status(lab.project, replace(lab.run("12"), device=device), lab.results).changed

    finish(lab, "12")
    assert (state(None), state("cpu"), state("cuda")) == ((), (), ("device",))
    finish(lab, "12", device="cuda")
    assert (state(None), state("cpu"), state("cuda")) == ((), ("device",), ())
    finish(lab, "12")
    lab.add("12_device", defaults="device = 'cuda'  # where")
    assert (state(None), state("cpu"), state("cuda")) == (("device",), (), ("device",))


def test_data_count_by_their_bytes(lab: TinyLab, tmp_path: Path, monkeypatch) -> None:
    data = tmp_path / "mnist.npz"
    data.write_bytes(b"pixels")
    folder = lab.results / "11_fit" / "quick"
    (folder / "metrics.json").write_text(json.dumps({"provenance": {"data": [{"file": str(data)}, {"name": "made"}]}}))
    finish(lab, data=freshness.describe_data(folder))
    with monkeypatch.context() as patch:
        patch.setattr(freshness, "hash_file", lambda path: pytest.fail("read again"))
        assert changed(lab) == ()
    os.utime(data, (1, 1))
    assert changed(lab) == ()  # touched, the same bytes
    for content in (b"PIXELS", b"more pixels"):
        data.write_bytes(content)
        assert changed(lab) == ("data mnist.npz",)
    data.unlink()
    assert changed(lab) == ("data mnist.npz",)


def test_a_result_must_be_whole(lab: TinyLab) -> None:
    folder = lab.results / "11_fit" / "quick"
    (folder / "metrics.json").unlink()
    assert changed(lab) == ("result metrics.json",)
    for text in ("", "[]", "{}", '{"status": "done"}'):
        (folder / "run.json").write_text(text)
        assert lab.state("11").state == "not run"


def test_a_failed_run_tells_why(lab: TinyLab) -> None:
    failure = Failure("ValueError: no", 2, 5, "fit()", "...")
    finish(lab, failure=failure)
    assert lab.state("11").failure == failure


def test_a_result_tells_which_code_made_it(lab: TinyLab) -> None:
    folder = lab.results / "11_fit" / "quick"
    first = freshness.made_by(folder)
    assert (first["version"], first["commit"], first["date"]) == (runner.labutils.__version__, None, AT)
    edit(lab, KEPT["a docstring"])
    finish(lab)
    assert freshness.made_by(folder)["code"] == first["code"]
    (lab.project.package / "models.py").write_text(MODELS.replace("SIZE = 3", "SIZE = 4"))
    finish(lab)
    assert freshness.made_by(folder)["code"] != first["code"]
    assert freshness.made_by(folder.with_name("none")) == {}


def test_a_result_tells_the_commit(lab: TinyLab) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *words], cwd=lab.root, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (lab.root / ".gitignore").write_text("results\n")
    git("add", ".")
    git("commit", "-qm", "Begin")
    head = git("rev-parse", "--short=12", "HEAD").strip()
    assert freshness.made_by(finish(lab))["commit"] == head
    edit(lab, KEPT["prose"])
    assert freshness.made_by(finish(lab))["commit"] == f"{head}-dirty"


# --- What a kill leaves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_a_result_is_replaced_loses_none(renames: int, lab: TinyLab, monkeypatch) -> None:
    folder = lab.results / "11_fit" / "quick"
    partial = folder.with_name(".quick.partial")
    shutil.copytree(folder, partial)
    (partial / "new").touch()
    rename, left = os.replace, renames

    def replace_until_killed(*paths: Path, **_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise SystemExit("killed")
        rename(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_until_killed)
        patch.setattr(shutil, "rmtree", replace_until_killed)
        with pytest.raises(SystemExit):
            freshness.replace(partial, folder)
    with filelock.FileLock(freshness.lock_file(folder)):  # somebody is at it
        assert lab.state("11").state == ("not run" if renames == 1 else "done")
    assert lab.state("11").state == "done"
    assert (folder / "new").exists() == (renames == 2)
    assert not folder.with_name(".quick.old").exists()
    if partial.exists():
        freshness.replace(partial, folder)
    assert (folder / "new").exists()


# --- Checkpoints -------------------------------------------------------------------------------------------------


@pytest.fixture
def big(lab: TinyLab) -> Path:
    """The folder of the checkpoints of a run that was interrupted."""
    kept = freshness.open_checkpoints(lab.run("11:big"), lab.results, 3)
    assert (kept.threads, kept.seconds, json.loads(kept.made_by)["threads"]) == (3, 0.0, 3)
    folder = kept.folder
    for name in ("a", "b", "c"):
        (folder / f"{name}.checkpoint").write_bytes(b"weights")
    freshness.close_checkpoints(folder, done=False, seconds=2.5)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != freshness.MADE_BY)


def test_an_interrupted_run_leaves_all_to_go_on_from_with_its_threads(lab: TinyLab, big: Path) -> None:
    assert time.time() - freshness.last_checkpoint(lab.run("11:big"), lab.results) < 200
    edit(lab, COUNTED["code"])
    first = (big / freshness.MADE_BY).read_text()
    assert freshness.open_checkpoints(lab.run("11:big"), lab.results, 1) == (big, 3, 2.5, first)
    assert names(big) == ["a.checkpoint", "b.checkpoint", "c.checkpoint"]


def test_a_run_that_is_done_leaves_what_it_used(lab: TinyLab, big: Path, monkeypatch) -> None:
    run = lab.run("11:big")
    long_ago = time.time() - 1000
    for name in names(big):
        os.utime(big / name, (long_ago, long_ago))
    freshness.open_checkpoints(run, lab.results, 1)
    os.utime(big / "a.checkpoint")  # read, see labutils.checkpoint
    (big / "d.checkpoint").write_bytes(b"larger weights")
    freshness.close_checkpoints(big, done=True, seconds=4.0)
    assert names(big) == ["a.checkpoint", "d.checkpoint"]
    assert freshness.open_checkpoints(run, lab.results, 1).threads == 1  # nothing is left to go on from
    for name in names(big):
        os.utime(big / name)
    monkeypatch.setattr(freshness, "LARGEST_KEPT", 10)
    freshness.close_checkpoints(big, done=True, seconds=4.0)
    assert names(big) == ["a.checkpoint"]


def test_force_starts_over_and_quick_runs_keep_nothing(lab: TinyLab, big: Path) -> None:
    assert freshness.open_checkpoints(lab.run("11"), lab.results, 2) == (None, 2, 0.0, "")
    assert freshness.last_checkpoint(lab.run("11"), lab.results) is None
    kept = freshness.open_checkpoints(lab.run("11:big"), lab.results, 1, force=True)
    assert (names(kept.folder), kept.threads) == ([], 1)
    assert freshness.last_checkpoint(lab.run("11:big"), lab.results) is None
    freshness.close_checkpoints(kept.folder, done=False, seconds=2.5)
    assert not big.exists()


def test_what_nobody_uses_goes_after_a_month(lab: TinyLab, big: Path) -> None:
    lab.name_runs({"11_fit": {"big": {"n": 10}, "new": {"n": 11}}})
    old = time.time() - 86400 * (freshness.DAYS_KEPT + 1)

    def work() -> None:
        folder = freshness.open_checkpoints(lab.run("11:new"), lab.results, 1).folder
        freshness.close_checkpoints(folder, done=True, seconds=1.0)

    os.utime(big / freshness.MADE_BY, (old, old))
    work()
    assert big.exists()  # it is not done
    freshness.close_checkpoints(big, done=True, seconds=4.0)
    for age, there in ((time.time(), True), (old, False)):
        os.utime(big / freshness.MADE_BY, (age, age))
        with filelock.FileLock(freshness.lock_file(lab.run("11:big").folder(lab.results))):
            work()
        assert big.exists()
        work()
        assert big.exists() == there


# --- All together ------------------------------------------------------------------------------------------------

FIT = """
from labutils import models, record, training
import torch
run = record.start("11_fit", {"n": n})
x = torch.linspace(0, 1, 64)[:, None]
networks = [models.mlp([1, 8, 1], "tanh", seed=seed) for seed in range(2)]
norms = training.Measurements(lambda epoch, stack: stack.weights.norm(dim=1))
history = training.fit(networks, (x, (6 * x).sin()), epochs=n, lr=lr, batch_size=16, loss="mse", on_epoch=norms)
"""


async def execute_here(job: Job, folder: Path, **_: object) -> Outcome:
    """As `jupyter.carry_out`, in this process: a kernel would import torch each time."""
    names, failure = dict[str, Any](), None
    environment = {"LABUTILS_RUN_DIR": folder, "LABUTILS_RUN": job.name, "LABUTILS_CHECKPOINTS": job.checkpoints}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, str(value))
        try:
            for cell in nbformat.reads(job.notebook.decode(), as_version=4).cells[1:]:
                exec(cell.source, names)
                names |= job.parameters
        except ArithmeticError as error:
            failure = Failure(f"{type(error).__name__}: {error}")
    return Outcome(AT, 1.0, failure=failure)


def test_a_repeated_run_trains_only_what_changed(tiny_lab: TinyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of training stay where a plot, a claim or a text is mended."""
    monkeypatch.setattr(jupyter, "carry_out", execute_here)
    plot = "run.metrics(norms=norms.values, loss=history.train_loss, figure='first')"
    defaults = "n = 2\nlr = 0.1"

    def computed() -> float:
        """The seconds of all tries so far."""
        made_by = freshness.checkpoint_folder(tiny_lab.run("11:long"), tiny_lab.results) / freshness.MADE_BY
        return json.loads(made_by.read_text())["seconds"] if made_by.exists() else 0.0

    def execute(source: str, *after: str) -> tuple[dict[str, Any], dict[str, int]]:
        tiny_lab.add("11_fit", source, *after, defaults=defaults)
        tiny_lab.name_runs({"11_fit": {"long": {"n": 40}}})
        before = computed()
        [result] = runner.execute(tiny_lab.project, [tiny_lab.run("11:long")], tiny_lab.results, jobs=1)
        assert result.seconds == before + 1.0  # of this try: as `execute_here` says
        assert computed() > before
        folder = freshness.checkpoint_folder(result.run, tiny_lab.results)
        files = {path.name: path.stat().st_ino for path in folder.glob("*.checkpoint")}
        if result.failure:
            return {"error": result.failure.error}, files
        assert freshness.read_record(result.folder)["seconds"] == round(result.seconds, 3)
        return json.loads((result.folder / "metrics.json").read_text())["metrics"], files

    first, files = execute(FIT, plot)
    assert len(files) == 1
    again, unchanged = execute(f"# Train.\n{FIT}", plot.replace("first", "second"))
    assert unchanged == files  # what is trained again is written again
    assert again == first | {"figure": "second"}
    failed, unchanged = execute(FIT.replace("norms = ", "# by network\nnorms = "), "1 / 0")
    assert (failed, unchanged) == ({"error": "ZeroDivisionError: division by zero"}, files)
    other, more = execute(FIT.replace("norm(dim=1)", "square().sum(dim=1)"), plot)
    assert other["norms"] != first["norms"]
    assert other["loss"] == first["loss"]
    assert len(more) == 1
    assert more.keys() != files.keys()  # and what nobody uses is gone
