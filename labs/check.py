"""``labs check``: is a notebook as grading needs it, and what helps if not?

Students check their own file; instructors a folder of submissions, or the zip of a learning platform. What was handed
in is only read: no file larger than `LARGEST`, no link is followed, archives are read in memory and never unpacked, and
of the names in them none becomes a path as it is.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from labs import runner, submission
from labs.runner import LabsError
from labs.submission import Document

KERNEL = "python3"
LARGE, LARGEST = 10 * 2**20, 100 * 2**20  # bytes: what is too much for a learning platform, and what is not read
MOST_FILES = 20_000  # in an archive


def find_originals(release: Path | None) -> dict[str, Document]:
    """The notebooks of a release as they were handed out: of the folder `release`, else of the one around the current
    folder,
    or of `students` in it.

    Raises:
        LabsError: there is none.
    """
    here = runner.find_project().root
    choices = [release] if release else [here, Path("students")]
    folder = next((one for one in choices if (one / submission.ORIGINALS).exists()), choices[0])
    try:
        return submission.read_originals(folder)
    except LabsError as error:
        raise LabsError(f"{error}; --release DIR names another folder") from None


# --- What is wrong ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What was found in a file."""

    label: str
    student: str  # empty where that cannot be seen
    name: str | None  # the notebook of the release that it is
    problems: list[str]  # what has to be mended, with how
    notes: list[str] = field(default_factory=list)  # what is good to know
    touches: list[str] = field(default_factory=list)  # what an instructor may want to look at
    notebook: Document | None = None  # its content, if it can be read
    when: datetime = datetime.min  # when the file was last changed


def check(file: File, originals: Mapping[str, Document]) -> Report:
    """Compare a file with the notebook that it should be."""
    stem = PurePosixPath(file.label).stem
    student = file.student
    if file.content is None:
        problem = "is too large to be read: clear the outputs (Edit → Clear Outputs of All Cells), save, hand in again"
        return Report(file.label, student, None, [problem], when=file.when)
    try:
        notebook = _parse(file.content)
    except ValueError as error:
        problem = f"is not a notebook that can be read ({error}): open it in Jupyter, save it, hand in again"
        return Report(file.label, student, stem if stem in originals else None, [problem], when=file.when)
    shared = {name: _overlap(notebook, original) for name, original in originals.items()}
    name = max(shared, key=lambda one: (shared[one], one == stem))
    if not shared[name]:
        return Report(file.label, student, None, ["is no notebook of this release"], when=file.when)
    problems = []
    if stem != name:
        problems.append(f"is {name}: name it {name}.ipynb, as nothing else is graded")
        if not student:  # platforms put the student's name in front
            student = _clean(stem.partition(name)[0]) if name in stem else ""
    if len(file.content) > LARGE:
        size = f"{len(file.content) / 2**20:.0f} MiB"
        problems.append(f"is large ({size}): clear the outputs (Edit → Clear Outputs of All Cells) and save")
    found, notes = examine(notebook, originals[name])
    seen = submission.touches(notebook, originals[name])
    return Report(file.label, student, name, problems + found, notes, seen, notebook, file.when)


def describe(report: Report, *, for_instructor: bool) -> str:
    """What to tell of a file, in lines."""
    count = len(report.problems)
    state = f"{count} problem{'s' * (count > 1)}" if count else "ready"
    lines = [f"{report.label}: {state}", *(f"    {text}" for text in report.problems)]
    lines += [f"    note: {text}" for text in report.notes]
    lines += [f"    look at: {text}" for text in report.touches if for_instructor]
    shown = "\n".join(lines)
    return "".join(one if one.isprintable() or one == "\n" else "?" for one in shown)  # names come from elsewhere


def _overlap(notebook: Document, original: Document) -> int:
    """How many cells two notebooks have in common; those of exercises count more, as others may be alike by chance."""
    ids = {submission.needed(cell) for cell in notebook["cells"]} - {None, submission.PARAMETERS, submission.SET_UP}
    texts = {submission.source(cell).strip() for cell in notebook["cells"]} - {""}
    return sum(
        10 * (submission.needed(cell) in ids) + (submission.source(cell).strip() in texts)
        for cell in original["cells"]
        if cell["source"]
    )


def _parse(content: bytes) -> Document:
    """Read a notebook.

    Raises:
        ValueError: it is none, or of an old format.
    """
    if not content.strip():
        raise ValueError("the file is empty")
    try:
        notebook = json.loads(content)
    except (ValueError, RecursionError):
        conflict = b"\n<<<<<<<" in content and b"\n>>>>>>>" in content
        raise ValueError("git has left the marks of a conflict" if conflict else "it is not JSON") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("nbformat"), int):
        raise ValueError("it is JSON of another kind")
    if notebook["nbformat"] != 4:
        raise ValueError(f"it has format {notebook['nbformat']}, expected 4")
    cells = notebook.get("cells")
    if not isinstance(cells, list) or not all(map(_is_cell, cells)):
        raise ValueError("its cells are damaged")
    if not isinstance(notebook.setdefault("metadata", {}), dict):
        raise ValueError("its metadata are damaged")
    return notebook


def _is_cell(cell: Any) -> bool:
    if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
        return False
    metadata, text = cell.setdefault("metadata", {}), cell.get("source", "")
    return (
        isinstance(metadata, dict)
        and isinstance(metadata.get("tags", []), list)
        and (isinstance(text, str) or (isinstance(text, list) and all(isinstance(line, str) for line in text)))
    )


def examine(notebook: Document, original: Document) -> tuple[list[str], list[str]]:
    """Compare a notebook with its original: what has to be mended, and what is good to know."""
    found, problems, notes = submission.match(notebook, original), [], []
    cells, theirs = notebook["cells"], original["cells"]
    for j in found.copies:
        problems.append(
            f"{submission.described(cells[j])} is there more than once: delete the copy (the last one counts)"
        )
    open_ones, behind, before = [], -1, ""
    for i, right in enumerate(theirs):
        if not submission.needed(right):
            continue
        what = submission.described(right)
        if i not in found.mine:
            problems.append(f"{what} is missing: take it from a fresh copy of the notebook")
            continue
        own = cells[found.mine[i]]
        if found.mine[i] < behind:
            problems.append(f"{what} stands before {before}, and belongs behind it: move it there")
        behind, before = max((found.mine[i], what), (behind, before))
        if i in found.adopted:
            problems.append(f"{what} has lost its mark: copy your text into that cell of a fresh copy")
        if own["cell_type"] != right["cell_type"]:
            key = {"code": "Y", "markdown": "M", "raw": "R"}[right["cell_type"]]
            problems.append(f"{what} is a cell of kind {own['cell_type']}: select it and press {key}")
        elif submission.is_locked(right) and not submission.alike(own, right):
            problems.append(f"{what} has been changed, but grading uses the original: take it from a fresh copy")
        elif submission.is_answer(right) and (submission.alike(own, right) or not submission.source(own).strip()):
            open_ones.append(str(submission.needed(right)))
        elif own["cell_type"] == "code" and (line := _syntax_error(submission.source(own))):
            problems.append(f"{what} is not Python: look at line {line}")
    kernel = notebook["metadata"].get("kernelspec")
    kernel = kernel if isinstance(kernel, dict) else {}
    if str(kernel.get("language", "python")).lower() != "python":
        problems.append(f"is written for {kernel['language']}: choose the kernel Python 3 (Kernel → Change Kernel)")
    elif kernel.get("name", KERNEL) != KERNEL:
        notes.append(f"uses the kernel {kernel['name']!r}; it will be graded with Python 3 and the lab's packages")
    if names := submission.lesson_names(submission.rebuild(notebook, original)[0]):
        notes.append(
            f"an answer uses {', '.join(names)} of the lesson, so grading takes longer: better give it as an argument,"
            " or define it beside the answer"
        )
    if open_ones:
        notes.append(f"not written yet: {', '.join(open_ones)}")
    return problems, notes


def _syntax_error(text: str) -> int | None:
    """The line in which a cell stops being Python."""
    try:
        submission.parse(text)
    except SyntaxError as error:
        return error.lineno or 1
    return None


# --- Files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A file that was handed in."""

    label: str  # its path below the folder or archive that it was found in
    student: str  # the first part of that path; empty where there is but one part
    content: bytes | None  # None for a file that is too large
    when: datetime  # of its last change


def collect(path: Path) -> Iterator[File]:
    """Every notebook that a path holds: a file, a folder of submissions, or the archive of a learning platform.

    Raises:
        LabsError: there is nothing, or an archive is damaged, encrypted, or holds too much.
    """
    if path.is_dir():
        for folder, names, files in os.walk(path):
            names[:] = sorted(name for name in names if not name.startswith("."))
            for name in sorted(files):
                one = Path(folder, name)
                if one.is_file() and not one.is_symlink():
                    label = one.relative_to(path).as_posix()
                    yield from _unpack(label, _read(one), datetime.fromtimestamp(one.stat().st_mtime))
    elif path.suffix.lower() == ".zip" and path.is_file():
        yield from _from_archive("", path.read_bytes(), str(path))
    elif path.is_file():
        yield File(path.name, "", _read(path), datetime.fromtimestamp(path.stat().st_mtime))
    else:
        raise LabsError(f"{path}: there is no such file or folder")


def _read(path: Path) -> bytes | None:
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    return content if len(content) <= LARGEST else None


def _unpack(label: str, content: bytes | None, when: datetime, depth: int = 0) -> Iterator[File]:
    """A notebook, or those in an archive that a student handed in."""
    parts = PurePosixPath(label).parts
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return
    suffix = PurePosixPath(label).suffix.lower()
    if suffix == ".ipynb":
        yield File(label, _clean(parts[0]) if len(parts) > 1 else "", content, when)
    elif suffix == ".zip" and content is not None and depth < 2:
        yield from _from_archive(label, content, label, depth + 1)


def _from_archive(prefix: str, content: bytes, name: str, depth: int = 0) -> Iterator[File]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
            around = _around([PurePosixPath(one.filename).parts for one in members]) if not depth else ""
            if len(members) > MOST_FILES:
                raise LabsError(f"{name} holds {len(members):,} files: more than {MOST_FILES:,} are not read")
            for member in members:
                if PurePosixPath(member.filename).suffix.lower() not in (".ipynb", ".zip"):
                    continue
                with archive.open(member) as file:  # what an archive says of sizes may be wrong: read, and count
                    inner = file.read(LARGEST + 1)
                inside = member.filename.removeprefix(around)
                label = "/".join(part for part in re.split(r"[\\/]+", f"{prefix}/{inside}") if part)
                when = datetime(*member.date_time) if member.date_time[1] else datetime.min
                yield from _unpack(label, inner if len(inner) <= LARGEST else None, when, depth)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, ValueError) as error:
        raise LabsError(f"{name} cannot be read as a zip archive: {error}") from None


def _around(paths: Sequence[tuple[str, ...]]) -> str:
    """The folder around all students' folders, if an archive has one."""
    first, second = {path[0] for path in paths}, {path[1] for path in paths if len(path) > 2}
    return f"{first.pop()}/" if len(first) == 1 and len(second) > 1 else ""


def _clean(name: str) -> str:
    """A student's name out of that of a folder or file, fit to be the name of a folder."""
    name = re.sub(r"_\d+_assignsubmission_\w+$", "", name)  # Moodle
    return re.sub(r"[^\w.@+ -]+", "_", name).strip(" ._-")


def newest(reports: Sequence[Report]) -> dict[tuple[str, str], Report]:
    """Of each student and notebook what was handed in last."""
    found: dict[tuple[str, str], Report] = {}
    for report in reports:
        if report.name and report.notebook:
            key = (report.student, report.name)
            if key not in found or report.when >= found[key].when:
                found[key] = report
    return found


def repair(reports: Sequence[Report], originals: Mapping[str, Document], folder: Path, assignment: str = "") -> int:
    """Write every student's answers in clean notebooks, FOLDER/STUDENT/ASSIGNMENT/NOTEBOOK.ipynb; return how many.

    Raises:
        LabsError: a notebook is there already; none is written then.
    """
    chosen = {folder / student / assignment / f"{name}.ipynb": one for (student, name), one in newest(reports).items()}
    if there := [target for target in chosen if target.exists()]:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise LabsError(f"--repair: {there[0]} is there already{more}: move it away, or name another folder")
    for target, report in chosen.items():
        assert report.notebook is not None
        assert report.name is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(submission.repaired(report.notebook, originals[report.name]), indent=1, ensure_ascii=False)
        target.write_text(text + "\n", encoding="utf-8", errors="replace")
    return len(chosen)
