"""A student's notebook beside its original: which cell is which, how to mend it, and what of it deserves a look.

A student's cell is that of the original with the same grade id, else with the same cell id, else with the same text;
an answer that has lost its mark is known by the function that it defines.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import symtable
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from labs.runner import LabsError

ORIGINALS = "originals.zip"
PARAMETERS, SET_UP = "the parameters cell", "the set-up cell"
Document = dict[str, Any]
Cell = dict[str, Any]
Origin = Literal["exercise", "lesson", "changed", "added"]


def read_originals(release: Path) -> dict[str, Document]:
    """The notebooks of a release as they were handed out: name to notebook.

    Raises:
        LabsError: the folder is no release.
    """
    try:
        with zipfile.ZipFile(release / ORIGINALS) as archive:
            return {PurePosixPath(name).stem: json.loads(archive.read(name)) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise LabsError(
            f"{release} is not a folder that `labs release` made: it has no readable {ORIGINALS}, the notebooks as they"
            f" were handed out ({type(error).__name__})"
        ) from None


# --- Which cell is which ------------------------------------------------------------------------------------------


def source(cell: Mapping[str, Any]) -> str:
    """The text of a cell."""
    text = cell.get("source", "")
    return "".join(text) if isinstance(text, list) else text


def mark(cell: Mapping[str, Any]) -> Mapping[str, Any]:
    """What nbgrader knows of a cell; empty for one that it does not look at."""
    found = cell["metadata"].get("nbgrader")
    return found if isinstance(found, dict) and found.get("grade_id") else {}


def needed(cell: Mapping[str, Any]) -> str | None:
    """What a grade needs of a notebook: the name of the cell; None for one that the grade does without."""
    if grade_id := mark(cell).get("grade_id"):
        return str(grade_id)
    if "parameters" in cell["metadata"].get("tags", ()):
        return PARAMETERS
    return SET_UP if cell["cell_type"] == "code" and "record.start(" in source(cell) else None


def is_answer(cell: Mapping[str, Any]) -> bool:
    """Whether students write in it."""
    return bool(mark(cell).get("solution"))


def is_locked(cell: Mapping[str, Any]) -> bool:
    """Whether grading takes the original."""
    return bool(mark(cell)) and not is_answer(cell)


def alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two cells are of one kind and say the same."""
    return (a["cell_type"], source(a).strip()) == (b["cell_type"], source(b).strip())


def described(cell: Mapping[str, Any]) -> str:
    """What to call a cell that a grade needs."""
    name = needed(cell)
    if name in (PARAMETERS, SET_UP):
        return str(name)
    kind = "answer" if is_answer(cell) else "check" if mark(cell).get("grade") else "locked cell"
    return f"the {kind} {name!r}"


def _id(cell: Mapping[str, Any]) -> Any:
    return cell.get("id") or cell["metadata"].get("id")  # Colab has it there


@dataclass(frozen=True)
class Match:
    """Which cells of a student's notebook are those of its original, by their places in the two."""

    mine: dict[int, int]  # place in the original to place in the student's
    copies: list[int]  # those of the student's that have the grade id of a later one, which counts
    adopted: list[int]  # those of the original whose cell in the student's had lost its mark


def match(notebook: Document, original: Document) -> Match:
    """Find the cells of an original in a student's notebook."""
    cells, theirs = notebook["cells"], original["cells"]
    places = {name: i for i, cell in enumerate(theirs) if (name := needed(cell))}
    mine: dict[int, int] = {}
    copies: list[int] = []
    for j in reversed(range(len(cells))):
        i = places.get(needed(cells[j]) or "")
        if i is not None and i not in mine:
            mine[i] = j
        elif i is not None and mark(cells[j]):
            copies.insert(0, j)
    adopted: list[int] = []

    def find(same: Any, candidates: Sequence[int], *, lost: bool) -> None:
        for i in candidates:
            taken = {*mine.values(), *copies}
            free = [j for j in range(len(cells)) if j not in taken and same(cells[j], theirs[i])]
            if i not in mine and free:
                mine[i] = free[-1] if lost else free[0]
                adopted.extend([i] if lost else [])

    lesson = [i for i, cell in enumerate(theirs) if not needed(cell)]
    find(lambda a, b: _id(a) and _id(a) == _id(b), [i for i in places.values() if i not in mine], lost=True)
    find(lambda a, b: _id(a) and _id(a) == _id(b), lesson, lost=False)
    find(alike, lesson, lost=False)
    find(lambda a, b: _functions(a) & _functions(b), [i for i in places.values() if is_answer(theirs[i])], lost=True)
    return Match(mine, copies, sorted(adopted))


def _functions(cell: Mapping[str, Any]) -> set[str]:
    return set(re.findall(r"(?m)^def (\w+)", source(cell))) if cell["cell_type"] == "code" else set()


# --- Mending ------------------------------------------------------------------------------------------------------


def rebuild(notebook: Document, original: Document) -> tuple[list[tuple[Cell, Origin]], list[str]]:
    """Put what a student wrote into the cells of the original.

    Returns:
        The cells of a notebook in which everything is right, in the original order, each with what it is: of an
        exercise
        (with the parameters and the set-up), of the lesson as it was or changed, or added by the student; and what had
        to
        be done for it, in words.
    """
    found, notes = match(notebook, original), []
    cells, theirs = notebook["cells"], original["cells"]
    owner = {j: i for i, j in found.mine.items()}
    added: dict[int, list[Cell]] = {}  # place in the original to what the student put behind it
    last, used = -1, {cell["id"] for cell in theirs}
    for j, cell in enumerate(cells):
        if j in owner:
            last = owner[j]
        elif j in found.copies and not is_answer(cell):
            notes.append(f"dropped a copy of {described(cell)}")
        else:
            if j in found.copies:
                notes.append(f"{described(cell)} was there twice: the last one counts")
            name = str(_id(cell) or "")
            fresh = name if re.fullmatch(r"[\w-]{1,64}", name) and name not in used else f"added-{j}"
            used.add(fresh)
            added.setdefault(last, []).append(_as(cell, {"id": fresh, "cell_type": cell["cell_type"], "metadata": {}}))
    made: list[tuple[Cell, Origin]] = [(cell, "added") for cell in added.get(-1, ())]
    for i, right in enumerate(theirs):
        own = cells[found.mine[i]] if i in found.mine else None
        changed = own is not None and not alike(own, right)
        if needed(right):
            if own is None:
                notes.append(f"put back {described(right)}")
            elif i in found.adopted:
                notes.append(f"marked {described(right)} again")
            elif is_locked(right) and changed:
                notes.append(f"put back the text of {described(right)}")
            made.append((right if own is None or is_locked(right) else _as(own, right), "exercise"))
        elif own is not None and changed:
            made.append((_as(own, right), "changed"))
        elif own is not None or right["cell_type"] == "markdown":
            made.append((right, "lesson"))
        made.extend((cell, "added") for cell in added.get(i, ()))
    return made, notes


def _as(cell: Mapping[str, Any], like: Mapping[str, Any]) -> Cell:
    """A student's text in a cell of another's kind, id and metadata."""
    made = {"id": like["id"], "cell_type": like["cell_type"], "metadata": like["metadata"], "source": source(cell)}
    return made | ({"outputs": [], "execution_count": None} if like["cell_type"] == "code" else {})


def repaired(notebook: Document, original: Document) -> Document:
    """A clean notebook with a student's answers in it."""
    return original | {"cells": [cell for cell, _ in rebuild(notebook, original)[0]]}


# --- What answers need --------------------------------------------------------------------------------------------


def lesson_names(cells: Sequence[tuple[Cell, Origin]]) -> list[str]:
    """What the exercises among the cells of `rebuild` use and only the lesson defines, which grading does not run."""
    code = [(cell, origin) for cell, origin in cells if cell["cell_type"] == "code"]
    added = [_names(source(cell)) for cell, origin in code if origin == "added"]
    wanted = {name for cell, _ in code if mark(cell) for name in _names(source(cell))[1]}
    for _ in added:  # one may use what another defines
        wanted |= {name for bound, used in added if bound & wanted for name in used}
    there = {name for bound, _ in added for name in bound} | set(dir(builtins))
    there |= {name for cell, origin in code if origin == "exercise" for name in _names(source(cell))[0]}
    lesson = {name for cell, origin in code if origin in ("lesson", "changed") for name in _names(source(cell))[0]}
    return sorted(wanted & lesson - there)


def _names(text: str) -> tuple[set[str], set[str]]:
    """The names that a cell gives to something, and those that it takes from elsewhere."""
    try:
        tables = [symtable.symtable(ast.unparse(parse(text)), "cell", "exec")]
    except (SyntaxError, RecursionError):
        return set(), set()
    bound = {one.get_name() for one in tables[0].get_symbols() if one.is_assigned() or one.is_imported()}
    for table in tables:
        tables.extend(table.get_children())
    names = [(table, one) for table in tables for one in table.get_symbols() if one.is_referenced()]
    used = {one.get_name() for table, one in names if one.is_global() or table is tables[0]}
    return bound, used - bound


# --- What to look at ----------------------------------------------------------------------------------------------

_REASONS = {
    "looks into the running program": "inspect gc ctypes _getframe settrace f_globals f_locals f_back tb_frame",
    "reaches behind names": "__code__ __globals__ __closure__ __import__ importlib eval exec globals setattr delattr"
    " get_ipython",
    "starts a program": "subprocess pexpect system popen fork",
    "replaces what others use": "mock monkeypatch addaudithook",
    "reads files": "open read_text read_bytes glob rglob listdir scandir",
    "reads the text of earlier cells": "In _ih _i",
}
_NAMES = {name: reason for reason, names in _REASONS.items() for name in names.split()}
_METHODS_ALLOWED = {"eval", "open", "fork", "In"}  # as in model.eval(): only the plain name counts


def touches(notebook: Document, original: Document) -> list[str]:
    """What a student's own code does that no exercise needs, such as "replaces exercise.compare (the answer 'update-
    step')":
    for an instructor to look at, not a verdict.
    """
    seen: dict[str, None] = {}
    modules = {name for cell in original["cells"] for name in _imported(source(cell)) if cell["cell_type"] == "code"}
    texts = {cell["id"]: source(cell) for cell in original["cells"]}
    for cell, origin in rebuild(notebook, original)[0]:
        own = origin in ("added", "changed") or (origin == "exercise" and not is_locked(cell))
        if own and cell["cell_type"] == "code":
            where = described(cell) if needed(cell) else f"{'a changed' if origin == 'changed' else 'an added'} cell"
            given = set(_touches(texts.get(cell["id"], ""), modules))
            seen |= dict.fromkeys(f"{what} ({where})" for what in _touches(source(cell), modules) if what not in given)
    return list(seen)


def _imported(text: str) -> Iterator[str]:
    for node in _walk(text):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)


def parse(text: str) -> ast.Module:
    """Read a cell as Python; IPython's own commands are let pass.

    Raises:
        SyntaxError: it is not Python.
    """
    try:
        try:
            return ast.parse(text)
        except SyntaxError:
            return ast.parse(re.sub(r"(?m)^(\s*)(%+|!)\w.*$", r"\1pass", text))
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error)) from None


def _walk(text: str) -> list[ast.AST]:
    try:
        return list(ast.walk(parse(text)))
    except (SyntaxError, RecursionError):
        return []


def _touches(text: str, modules: set[str]) -> Iterator[str]:
    modules = modules | set(_imported(text))
    if command := re.search(r"(?m)^\s*[!%]+\w.*$", text):
        yield f"gives the command {command[0].strip()[:40]}"
    for node in _walk(text):
        names: list[str] = []
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name, ctx=ast.Store() | ast.Del()) if module in modules:
                yield f"replaces {module}.{name}"
            case ast.Name(id="exercise", ctx=ast.Store()):
                yield "gives the name exercise to something else"
            case ast.Name(id=name, ctx=ast.Load()):
                names = [name]
            case ast.Attribute(attr=name) if name not in _METHODS_ALLOWED:
                names = [name]
            case ast.Import() | ast.ImportFrom():
                names = [part for alias in node.names for part in alias.name.split(".")]
                names += (getattr(node, "module", None) or "").split(".")
        for name in names:
            if name in _NAMES:
                yield f"{_NAMES[name]}: {name}"
