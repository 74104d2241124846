"""What stands between a student's code and the rest of the machine while a notebook is graded. It runs in the kernel.

`stand` keeps a kernel from files that are not its business and from starting programs; `Seal` notices functions of
labutils, NumPy and torch that were replaced, and puts them back. Neither is a wall: whoever means harm gets around what
runs in the same process. Grade what strangers hand in with an account or in a container of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from types import ModuleType
from typing import Any, Literal

Access = Literal["", "r", "rw"]
_READ = ("os.listdir", "os.scandir", "os.chdir")
_WRITE = (
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"),
    *("os.truncate", "os.utime", "sqlite3.connect"),
)
_PROGRAMS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "pty.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SEALED = ("builtins", "numpy", "torch", "torch.nn.functional")  # and all of labutils
_CHANGING = ("input", "get_ipython")  # builtins that Jupyter itself exchanges


def stand(roots: Mapping[str, Access]) -> None:
    """From now on, and for good, keep this process from files and from programs.

    Args:
        roots: folder to what may be done in it: nothing, read, read and write. The nearest one above a file decides;
            where there is none, files may be read.
    """
    access = {os.path.realpath(root): may for root, may in roots.items()}
    own = str(os.getpid())

    def may(path: str) -> str:
        path = os.path.realpath(path)
        if path.startswith("/proc/"):  # other processes have secrets in their environment
            return "rw" if path.split("/")[2] == own or not path.split("/")[2].isdigit() else ""
        while path not in access and path != (above := os.path.dirname(path)):
            path = above
        return access.get(path, "r")

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_PROGRAMS):
            raise PermissionError("no program is started while a notebook is graded")
        if event == "open":
            path, mode, flags = arguments
            writes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & _WRITING)
            paths, what = (path,), "w" if writes else "r"
        elif event in _READ or event in _WRITE:
            paths, what = arguments[:2], "r" if event in _READ else "w"
        else:
            return
        for path in paths:
            named = isinstance(path, str | bytes | os.PathLike) and os.fspath(path) not in ("", b"", ":memory:")
            if named and what not in may(os.fsdecode(path)):
                raise PermissionError(f"out of reach while a notebook is graded: {os.fsdecode(path)}")

    sys.addaudithook(hear)


class Seal:
    """Remembers the functions and classes of labutils, NumPy and torch as they are now."""

    def __init__(self) -> None:
        self._held: list[tuple[ModuleType, str, Any, Any]] = [
            (module, name, value, getattr(value, "__code__", None))
            for module in _modules()
            for name, value in vars(module).items()
            if callable(value) and name not in _CHANGING
        ]

    def mend(self, names: MutableMapping[str, Any]) -> list[str]:
        """Put back what was replaced, also `exercise` in the notebook's `names`; return the names of it."""
        found = []
        for module, name, value, code in self._held:
            now = vars(module).get(name)
            if now is not value and not _own_doing(module, now):
                setattr(module, name, value)
                found.append(f"{module.__name__}.{name}")
            if code is not None and value.__code__ is not code:
                value.__code__ = code
                found.append(f"the code of {module.__name__}.{name}")
        exercise = sys.modules.get("labutils.exercise")
        if exercise and names.get("exercise", exercise) is not exercise:
            names["exercise"] = exercise
            found.append("the name exercise")
        return found


def _own_doing(module: ModuleType, value: Any) -> bool:
    """torch exchanges some of its functions when more of it is imported."""
    return module.__name__.startswith("torch") and str(getattr(value, "__module__", "")).startswith("torch")


def _modules() -> list[ModuleType]:
    known = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
    return [module for name, module in known if name in _SEALED or name.partition(".")[0] == "labutils"]
