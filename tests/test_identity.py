"""Which code counts: what a change of labutils or of a function must be noticed by, and by what not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import labutils
from labutils import identity
from labutils.identity import Package, strip

BASE = """
import torch
from math import ceil, floor
SIZE = 3
OTHER = 4

def area(x):
    '''Area.'''
    return floor(x * SIZE)
"""
TOOLS = """
from some import base as ground
from some.base import OTHER as four

def alone(x):
    return x

def double(x):
    return 2 * ground.area(x)

class Tool(dict):
    def use(self):
        return four

    def rest(self):
        return double

TABLE = {"double": double}

def find(name):
    return TABLE[name]
"""
LOUD = """
from typing import TYPE_CHECKING

from . import tools

if TYPE_CHECKING:
    from elsewhere import Something

def quiet():
    return 1

tools.TABLE["quiet"] = quiet
"""
DARK = "import importlib\ndef load(name): return importlib.import_module(name)"
SOURCES = {"": "VERSION = '1'", "base": BASE, "tools": TOOLS, "loud": LOUD, "dark": DARK}
AREA = ["base.SIZE", "base.area", "base.floor"]


def reached(source: str, **changed: str) -> dict[str, str]:
    return Package(SOURCES | changed, "some").reached(source)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("x = 1", []),
        ("from some import tools\ntools.alone(1)", ["tools.alone"]),
        ("from some.tools import alone as a\na(1)", ["tools.alone"]),
        ("import some.tools as t\nt.double(1)", [*AREA, "tools.double"]),
        ("import some\nsome.tools.double(1)", [*AREA, "tools.double"]),
        ("from some import *\nsome.tools.double(1)", "everything"),
        ("from some import tools\ntools.Tool()", ["base.OTHER", *AREA, "tools.Tool", "tools.double"]),
        ("from some import tools\ntools.find('x')", [*AREA, "tools.TABLE", "tools.double", "tools.find"]),
        ("from some import tools\ntools.ground.SIZE", ["base.SIZE"]),
        ("def f():\n    from some import tools\n    return [tools.alone(x) for x in ()]", ["tools.alone"]),
        ("import some\nprint(some.VERSION)", ["VERSION"]),
        ("from some import loud", [*AREA, "loud", "loud.quiet", "tools.TABLE", "tools.double"]),
        ("from some import base\ngetattr(base, 'area')", sorted([*AREA, "base.OTHER", "base.ceil", "base.torch"])),
        ("import some\ngetattr(some, 'tools')", "everything"),
        ("from some import dark\ndark.load('some.tools')", "everything"),
        ("%magic", "everything"),
        ("eval('1')", "everything"),
    ],
)  # fmt: skip
def test_code_reaches_what_it_names(source: str, parts: list[str] | str) -> None:
    everything = {"VERSION", "base.area", "base.SIZE", "base.OTHER", "tools.Tool", "tools.find", "loud", "dark.load"}
    found = reached(source)
    assert everything <= found.keys() if parts == "everything" else list(found) == parts


def test_a_change_counts_where_it_is_reached_and_says_something() -> None:
    source = "from some import tools\ntools.double(1)"
    before = reached(source)

    def changes(module: str, old: str, new: str) -> list[str]:
        assert old in SOURCES[module]
        now = reached(source, **{module: SOURCES[module].replace(old, new)})
        return sorted(name for name in {**before, **now} if before.get(name) != now.get(name))

    assert changes("base", "SIZE = 3", "SIZE = 5") == ["base.SIZE"]
    assert changes("base", "x * SIZE", "x + SIZE") == ["base.area"]
    assert changes("tools", "2 * ground.area(x)", "2 * four") == ["base.OTHER", *AREA, "tools.double"]
    assert changes("base", "ceil, floor", "floor") == []
    assert changes("base", "import ceil, floor", "import ceil as floor") == ["base.floor"]
    assert changes("base", "from math", "from torch") == ["base.floor"]
    assert changes("base", "OTHER = 4", "OTHER = 5") == []
    assert changes("tools", "return four", "return 4") == []
    assert changes("base", "'''Area.'''", "# The area.\n    'In square meters.'") == []
    assert changes("base", "x * SIZE", "(x\n     * SIZE)") == []
    assert changes("base", "SIZE = 3", "SIZE = 3\nSIZE += 1") == ["base.SIZE"]
    assert "tools" in changes("tools", "def double", "@ground.area\ndef double")  # it may enter it somewhere


def test_the_whole_package_is_compared_without_docstrings() -> None:
    one, other = ({"a": f"'''{text}'''\ndef f():\n    '''{text}'''"} for text in ("One.", "Other."))
    assert Package(one).digest() == Package(other).digest() != Package({"a": "def g(): ..."}).digest()


def test_every_module_of_labutils_can_be_followed() -> None:
    folder = Path(labutils.__file__).parent
    package = Package.read(folder)
    for path in folder.glob("*.py"):
        if path.stem == "__init__":
            continue
        uses_all = f"from labutils import {path.stem}\nprint({path.stem})"
        tree = ast.parse(path.read_text())
        found = Package(package.sources | {path.stem: ast.unparse(tree)}).reached(uses_all)
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or f"{path.stem}.{node.name}" in found:
                continue
            # A decorator of the package's own may enter it somewhere: then it counts as code of its module.
            node.body.append(ast.parse("changed = True").body[0])
            changed = Package(package.sources | {path.stem: ast.unparse(tree)}).reached(uses_all)
            node.body.pop()
            assert changed[path.stem] != found[path.stem], f"{path.stem}.{node.name}"
    fit = package.reached("from labutils import training\ntraining.fit")
    assert {"training.fit", "stack.Stack", "optim.Adam"} <= fit.keys()
    assert not any(name.startswith(("plotting", "record", "curvature", "similarity")) for name in fit)


def test_differences_are_named() -> None:
    ours = identity.of_this_process()
    assert identity.differences(ours, ours | {"torch": "0"}) == [f"torch 0 instead of {ours['torch']}"]
    assert identity.differences(ours, ours | {"code of labutils": "0"}) == ["other code of labutils"]
    assert identity.differences({"numba": "1"}, {}) == ["numba none instead of 1"]


def test_strip_keeps_what_a_cell_shows() -> None:
    assert strip("'shown'") != strip("'also shown'")
    assert strip("def f():\n    'Doc.'") == strip("def f():\n    pass")
