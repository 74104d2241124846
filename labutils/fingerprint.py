"""Fingerprints: one short text for a value's whole content, also for what a function does."""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path, PurePath
from types import CodeType, EllipsisType, FunctionType, MethodType, ModuleType
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from labutils.identity import LOADED, digest

_PLAIN = (bool, int, float, complex, str, bytes, type(None), EllipsisType, range, slice, PurePath)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_NOT_IN_A_CLASS = {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "_abc_impl"}
_NOT_IN_A_CLASS |= {"__dataclass_fields__", "__dataclass_params__", "__static_attributes__"}
_SILENT = {"NOP", "RESUME", "EXTENDED_ARG"}


def fingerprint(value: Any) -> str:
    """Compute the SHA-256 of a value's content, as 64 hexadecimal digits.

    Tensors count with shape and type, containers and plain values by their content, networks with their weights. A
    function counts by what it does, a class by what its methods do: their instructions, so that neither name, comments
    nor docstring matter, with all that they use, which may be data. What comes from an installed package counts by its
    name, what comes from labutils by the code that it reaches (see `identity`).

    Raises:
        TypeError: something in it cannot be taken apart so, or pickled, such as an open file or a running generator.

    Example:
        >>> fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(2)), fingerprint([0.0]) == fingerprint([-0.0])
        (True, False)
        >>> half, third = (fingerprint(lambda x, n=n: x / n) for n in (2, 3))
        >>> half == fingerprint(lambda x, n=2: x / n), half == third
        (True, False)
    """
    checksum = hashlib.sha256()
    _feed(checksum.update, value, {})
    return checksum.hexdigest()


@functools.cache
def code_behind(name: str, without: tuple[str, ...] = ()) -> str:
    """Compute a digest of the code that a part of labutils, such as "training.fit", reaches `without` some modules.

    It has 16 hexadecimal digits, and is empty if there is no such part.

    Example:
        >>> len(code_behind("fingerprint.fingerprint")), code_behind("fingerprint.nothing")
        (16, '')
    """
    module, _, part = name.rpartition(".")
    parts = LOADED.reached(f"from labutils.{module} import {part}\n{part}")
    counted = {part: code for part, code in parts.items() if part.partition(".")[0] not in without}
    return digest(repr(counted)) if name in parts else ""


def _feed(update: Callable[[Any], None], value: Any, seen: dict[int, tuple[int, Any]]) -> None:
    """Pass on the bytes of a value; `seen` are the functions, classes and objects that it is in the middle of."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.dtype.kind in "OSU" else torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.stride(0) != 1:  # one number, expanded
            flat = flat.clone(memory_format=torch.contiguous_format)
        update(f"tensor {tuple(value.shape)} {value.dtype} ".encode())
        update(memoryview(flat.view(torch.uint8).numpy()))
    elif isinstance(value, Set):
        _feed(update, ["set", *sorted(map(fingerprint, value))], seen)
    elif isinstance(value, Mapping | list | tuple):
        update(f"{'dict' if isinstance(value, Mapping) else 'list'} {len(value)} ".encode())
        for item in value.items() if isinstance(value, Mapping) else value:
            _feed(update, item, seen)
    elif isinstance(value, (*_PLAIN, torch.dtype, torch.device)):
        text = repr(value)
        update(f"{type(value).__name__} {len(text)} {text}".encode())
    elif id(value) in seen:
        update(f"again {seen[id(value)][0]}".encode())
    else:
        seen[id(value)] = len(seen), value
        _feed(update, _taken_apart(value), seen)


def _taken_apart(value: Any) -> Any:
    """What makes up a function, a class or an object."""
    if isinstance(value, FunctionType):
        return _function(value)
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return ["partial", value.func, value.args, value.keywords]
    if isinstance(value, property):
        return ["property", value.fget, value.fset]
    if hasattr(value, "__wrapped__"):  # by functools.cache, staticmethod, classmethod
        return [type(value).__name__, value.__wrapped__]
    if isinstance(value, nn.Module):
        return [repr(value), [(type(one), one.training) for one in value.modules()], value.state_dict()]
    if isinstance(value, ModuleType):
        return _module(value)
    if isinstance(value, torch.Generator):
        return value.get_state()
    if not _is_library(type(value).__module__):
        return [type(value), vars(value)]
    try:
        return [type(value).__name__, joblib.hash(value)]
    except Exception as error:  # pickle raises many kinds
        raise TypeError(f"a {type(value).__name__} has no fingerprint: it cannot be pickled") from error


def _function(function: FunctionType) -> list[Any]:
    code, cells = function.__code__, function.__closure__ or ()
    bound = [function.__defaults__, function.__kwdefaults__, [_content(cell) for cell in cells]]
    if reached := _reached(function):
        return [reached, bound]
    if _is_library(function.__module__, code.co_filename):
        return [function.__module__, function.__qualname__, bound]
    return [_instructions(code), bound, dict(_used(code, function.__globals__))]


def _class(kind: type) -> list[Any]:
    if reached := _reached(kind):
        return reached
    if _is_library(kind.__module__):
        return [kind.__module__, kind.__qualname__]
    members = {name: member for name, member in sorted(vars(kind).items()) if name not in _NOT_IN_A_CLASS}
    return [kind.__bases__, {name: m for name, m in members.items() if not hasattr(m, "__objclass__")}]


def _module(module: ModuleType) -> list[Any]:
    if module.__name__.startswith("labutils."):
        return [LOADED.reached(f"import {module.__name__} as module\nprint(module)")]
    return [module.__name__, None if _is_library(module.__name__) else Path(module.__file__ or "").read_bytes()]


def _reached(thing: Any) -> list[Any]:
    """The name of a function or class of labutils, and the code that it reaches; nothing for others."""
    package, _, module = (thing.__module__ or "").partition(".")
    name = thing.__qualname__.partition(".")[0]
    found = code_behind(f"{module}.{name}") if package == "labutils" else ""
    return [thing.__qualname__, found] if found else []


def _is_library(module: str | None, file: str = "") -> bool:
    """Whether something comes from Python or an installed package."""
    if module == "__main__" or (module or "").partition(".")[0] == "labutils":
        return False
    return (file or getattr(sys.modules.get(module or ""), "__file__", None) or _LIBRARIES[0]).startswith(_LIBRARIES)


def _instructions(code: CodeType) -> list[Any]:
    """What a function does, without its lines, its name and its docstring."""
    arguments = code.co_argcount + code.co_kwonlyargcount
    steps = [
        (step.opname, _instructions(step.argval) if isinstance(step.argval, CodeType) else step.argval)
        for step in dis.get_instructions(code)
        if step.opname not in _SILENT
    ]
    head = [code.co_argcount, code.co_posonlyargcount, code.co_flags & 0b1100, code.co_varnames[:arguments]]
    return [head, steps, code.co_exceptiontable]


def _used(code: CodeType, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What code finds outside itself, by name: in the globals, and in modules of labutils or of the user's own."""
    for step in dis.get_instructions(code):
        if isinstance(step.argval, CodeType):
            yield from _used(step.argval, names)
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"):
            found = sys.modules.get(step.argval) if step.opname == "IMPORT_NAME" else names.get(step.argval)
            if not isinstance(found, ModuleType):
                yield step.argval, found
            elif _is_library(found.__name__):
                yield step.argval, found.__name__
            else:
                yield step.argval, {name: vars(found)[name] for name in code.co_names if name in vars(found)}


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
