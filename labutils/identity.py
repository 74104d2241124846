"""What computes a number: which code of labutils, and which versions of the packages below it.

Results and checkpoints are bound to this. Code is compared as its syntax tree without comments and docstrings, and only
as far as it is reached: following every name from where a computation starts, a function, class or constant of labutils
counts as a whole or not at all. In doubt it counts: a module that is passed around is reached as a whole, and code that
looks names up (`globals`, `exec`, `import_module`) reaches everything.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

NUMBERS_COME_FROM = ("torch", "numpy", "scipy", "pandas", "scikit-learn", "torchvision", "numba")
"""The packages whose version counts, where they are installed."""

_LOOKS_UP = {"globals", "eval", "exec", "__import__"}


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers come from, as far as they are installed.

    Example:
        >>> list(versions())[:2]
        ['python', 'torch']
    """
    found = {"python": platform.python_version()}
    for name in NUMBERS_COME_FROM:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def of_this_process(*packages: Package) -> dict[str, str]:
    """Return what must be the same wherever parts of one computation run: `versions`, and digests of packages' code.

    Without packages, that of labutils as it was when this process imported it.

    Example:
        >>> differences(of_this_process(), of_this_process())
        []
    """
    return versions() | {f"code of {package.name}": package.digest() for package in packages or (LOADED,)}


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Tell in words how `of_this_process` elsewhere differs from here.

    Example:
        >>> differences({"torch": "2.13.0", "code of labutils": "a"}, {"torch": "2.12.0", "code of labutils": "b"})
        ['torch 2.12.0 instead of 2.13.0', 'other code of labutils']
    """
    found = []
    for name in {**ours, **theirs}:
        here, there = ours.get(name, "none"), theirs.get(name, "none")
        if here != there:
            found.append(f"other {name}" if name.startswith("code of") else f"{name} {there} instead of {here}")
    return found


def strip(source: str | ast.AST) -> str:
    """Write source code, or its syntax tree, in one way for all: without comments, docstrings and layout.

    Raises:
        SyntaxError: the source is no Python.

    Example:
        >>> strip("def f(x):  # doubles\\n    'Double it.'\\n    return 2*x") == strip("def f(x): return (2 * x)")
        True
    """
    tree = ast.parse(source) if isinstance(source, str) else source
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.body = [one for one in node.body if not _is_text(one)] or [ast.Pass()]
    return ast.dump(tree)


def digest(text: str) -> str:
    """Compute the first 16 hexadecimal digits of a text's SHA-256.

    Example:
        >>> digest("")
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Package:
    """The source code of a package's modules, and what each of its functions, classes and constants uses.

    Args:
        sources: source code by the module's name within the package, "" for `__init__`.
        name: the package's name.

    Example:
        >>> package = Package({"a": "def f(): return g()\\ndef g(): return 1\\ndef h(): return 2"}, "some")
        >>> list(package.reached("from some import a\\na.f()"))
        ['a.f', 'a.g']
    """

    def __init__(self, sources: Mapping[str, str], name: str = "labutils") -> None:
        self.sources, self.name = dict(sources), name
        self._module = functools.cache(self._parse)
        self._behind = functools.cache(self._follow)
        self._digest = functools.cache(lambda *part: digest("\n".join(map(strip, self._nodes(*part)))))

    @classmethod
    def read(cls, folder: Path) -> Package:
        """Read all modules of a package."""
        found = {path.relative_to(folder).with_suffix("").parts: path for path in sorted(folder.rglob("*.py"))}
        named = {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in found.items()}
        return cls({name: path.read_text(encoding="utf-8") for name, path in named.items()}, folder.name)

    def digest(self) -> str:
        """Compute a digest of all modules, without comments and docstrings."""
        return digest(repr([(*part, self._digest(*part)) for part in sorted(self._everything())]))

    def reached(self, source: str) -> dict[str, str]:
        """Find what code, which imports it as any code does, uses of this package, directly or through other parts.

        Returns:
            The digests of what it reaches, by name ("training.fit"), in the order of the names; code of a module that
            runs on import has the module's name.
        """
        try:
            here = _Module(ast.parse(source), self.name, None)
        except SyntaxError:  # a cell with a magic, say: who knows what it uses
            todo = self._everything()
        else:
            todo = {*self._used(here, here.tree.body), *self._imported(here)}
        done: set[tuple[str, str]] = set()
        while todo:
            done |= todo
            todo = {found for one in todo for found in self._behind(*one)} - done
        parts = sorted(part for part in done if self._nodes(*part))
        return {f"{module}.{name}".strip("."): self._digest(module, name) for module, name in parts}

    def _parse(self, name: str) -> _Module:
        return _Module(ast.parse(self.sources.get(name, "")), self.name, name)

    def _nodes(self, module: str, name: str) -> list[ast.AST]:
        return self._module(module).parts[name]

    def _follow(self, module: str, name: str) -> frozenset[tuple[str, str]]:
        """What a part uses, and what runs when its module is imported."""
        here = self._module(module)
        found = {*self._used(here, self._nodes(module, name)), (module, "")}
        return frozenset(found if name else found.union(self._imported(here)))

    def _imported(self, here: _Module) -> Iterator[tuple[str, str]]:
        for path in (path for paths in here.aliases.values() for path in paths):
            yield self._longest(path)[0], ""

    def _used(self, here: _Module, nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
        for first, *rest in [*_names(nodes), ["*"]]:
            # What a notebook finds in its own `globals()` it has imported by name.
            if (first in _LOOKS_UP and (here.name is not None or first != "globals")) or "import_module" in rest:
                yield from self._everything()
            if first in here.parts and here.name is not None:
                yield here.name, first
            for path in here.aliases.get(first, ()):
                yield from self._find([*path, *rest])

    def _find(self, path: list[str]) -> Iterator[tuple[str, str]]:
        """The part of the package that a path from its top leads to; a module, or what is not found, as a whole."""
        module, rest = self._longest(path)
        here = self._module(module)
        if rest and rest[0] in here.parts:
            yield module, rest[0]
        elif rest and rest[0] in here.aliases:
            for further in here.aliases[rest[0]]:
                yield from self._find([*further, *rest[1:]])
        elif rest or module:
            yield from ((module, name) for name in here.parts)
        else:
            yield from self._everything()

    def _longest(self, path: list[str]) -> tuple[str, list[str]]:
        """The module that a path leads to, and what is left of the path."""
        for n in range(len(path), 0, -1):
            if ".".join(path[:n]) in self.sources:
                return ".".join(path[:n]), path[n:]
        return "", path

    def _everything(self) -> set[tuple[str, str]]:
        return {(module, name) for module in self.sources for name in self._module(module).parts}


class _Module:
    """What a module's top level defines.

    Attributes:
        name: its name within the package; None outside it.
        parts: the statements behind a name; behind "" those that may do more on import than define a name.
        aliases: the paths from the package's top that a name of an import stands for.
    """

    def __init__(self, tree: ast.Module, package: str, name: str | None) -> None:
        self.tree, self.name = tree, name
        self.aliases: dict[str, list[list[str]]] = {}
        for node in ast.walk(tree):
            for alias, path in _imports(node, package, name or ""):
                self.aliases.setdefault(alias, []).append(path)
        self._own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        self.parts: dict[str, list[ast.AST]] = {"": []}
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for one in node.names:
                    if (bound := one.asname or one.name.partition(".")[0]) not in self.aliases:
                        self.parts.setdefault(bound, []).append(one)  # the name's own part of it
                        self.parts[bound].extend(
                            [ast.Constant(node.module)] if isinstance(node, ast.ImportFrom) else []
                        )
            elif not _is_text(node) and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
                for one in self._defined(node) or [""]:
                    self.parts.setdefault(one, []).append(node)

    def _defined(self, node: ast.stmt) -> list[str]:
        """The names that a statement defines, if that is all it does."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            decorators = {first for first, *_ in _names(node.decorator_list)}
            # A decorator of the package's own may enter it somewhere.
            return [] if decorators & {*self.aliases, *self._own} else [node.name]
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            inner = [one for t in getattr(node, "targets", None) or [node.target] for one in ast.walk(t)]
            if all(isinstance(one, ast.Name | ast.Tuple | ast.Store) for one in inner):
                return [one.id for one in inner if isinstance(one, ast.Name)]
        return []


def _imports(node: ast.AST, package: str, module: str) -> Iterator[tuple[str, list[str]]]:
    """The names that an import of the package binds, with their paths from the package's top."""
    if isinstance(node, ast.Import):
        for one in node.names:
            top, *path = one.name.split(".")
            if top == package:
                yield (one.asname, path) if one.asname else (top, [])
    elif isinstance(node, ast.ImportFrom):
        path = node.module.split(".") if node.module else []
        if node.level:
            path = [*module.split(".")[: -node.level], *path]
        elif path[0] == package:
            path = path[1:]
        else:
            return
        for one in node.names:
            yield (one.asname or one.name), ([*path, one.name] if one.name != "*" else path)


def _names(nodes: Iterable[ast.AST]) -> Iterator[list[str]]:
    """Every name in code, with the attributes behind it: ["training", "fit"]."""
    todo = list(nodes)
    while todo:
        node, path = todo.pop(), []
        while isinstance(node, ast.Attribute):
            path.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            yield [node.id, *path]
        todo.extend(ast.iter_child_nodes(node))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


LOADED = Package.read(Path(__file__).parent)
"""This package as it was when imported: what runs, also if a file is edited meanwhile."""
