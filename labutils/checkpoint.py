"""Checkpoints: the state of a long computation on disk, from which it continues as if it had never stopped.

`training.fit` and the two minimizers of `curvature` save theirs where the environment variable `LABUTILS_CHECKPOINTS`
names a folder, as `labs run` does for the named runs, or where they are given a file. A checkpoint is bound to all that
decides the numbers: settings, initial weights, data, the functions that measure on the way, the code of labutils that
the computation reaches, version of torch; not to the notebook around it. One of another computation is refused. On the
same machine, with the same number of threads, the continued numbers equal those of an uninterrupted run bit for bit.

A file is a line of text with the content's SHA-256, then the content as `torch.save` writes it. It is replaced at once
or not at all, and loaded with `weights_only`: a file from elsewhere can hold wrong numbers, but no code. When it is
read, its time of modification becomes the present, so that files nobody uses can be told.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from labutils.files import write_atomically
from labutils.fingerprint import code_behind, fingerprint
from labutils.identity import versions

FOLDER = "LABUTILS_CHECKPOINTS"
SECONDS = "LABUTILS_CHECKPOINT_SECONDS"
_FORMAT = 2
_SHARE = 0.05  # of the time, at most, goes into saving
_SHOWN = 60  # characters of a setting that an error shows
_NO_NUMBERS = ("checkpoint", "distribute", "files", "fingerprint", "identity")  # modules that decide no number


class Part(Protocol):
    """What has a state to save, as torch's modules and optimizers have."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, made of tensors, numbers, strings, and lists and dicts of these."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take a state over."""


class Values:
    """Numbers and tensors that are saved together: attributes with a state.

    Example:
        >>> at = Values(epoch=0)
        >>> at.load_state_dict({"epoch": 3})
        >>> at.epoch
        3
    """

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def state_dict(self) -> dict[str, Any]:
        """Return the values by name."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the values; tensors go to the device of those that they replace."""
        for name, value in state.items():
            old = getattr(self, name, None)
            move = isinstance(old, Tensor) and isinstance(value, Tensor)
            setattr(self, name, value.to(old.device) if move else value)


class Checkpoint:
    """A computation's file: a context manager that restores the state on entry and keeps it from then on.

    Ctrl-C in it waits for the next `keep`, which saves before it goes on; a second one does not wait.

    Args:
        path: the file, or None: then nothing is saved, and `keep` costs next to nothing.
        settings: what the computation is bound to, see `bind`.
        parts: what is saved, by name.

    Raises:
        ValueError: on entry, for a file that is damaged or bound to other settings.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sum.checkpoint"
        >>> for _ in range(2):  # the second time, the sum is there at once
        ...     at = Values(step=0, sum=0)
        ...     with Checkpoint(path, {"steps": 4}, {"at": at}) as saved:
        ...         print("from step", at.step)
        ...         for step in range(at.step, 4):
        ...             at.step, at.sum = step + 1, at.sum + step
        ...             saved.keep()
        ...         saved.keep(now=True)
        from step 0
        from step 4
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
        self.path = path
        self._settings, self._parts = dict(settings), parts
        self._pause = _seconds() if path else 0.0
        self._due = time.perf_counter() + self._pause
        self._done = False  # what was restored was the end, and nothing was computed since
        self._interrupted = False
        self._handler: Any = None

    def __enter__(self) -> Self:
        if self.path is not None:
            for scrap in self.path.parent.glob(f".{glob.escape(self.path.name)}.*"):
                scrap.unlink(missing_ok=True)  # half written when its process died
            if self.path.exists():
                for name, state in self._load(self.path).items():
                    self._parts[name].load_state_dict(state)
                os.utime(self.path)
            self._wait_with_interrupts()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore_handler()
        if self._interrupted and kind is None:
            raise KeyboardInterrupt

    def keep(self, *, now: bool = False, without: Collection[str] = ()) -> None:
        """Save the state if it is time to; call it wherever the computation could continue from.

        Saves are `LABUTILS_CHECKPOINT_SECONDS` apart (30 if unset), and further if they would else take more than a
        twentieth of the time. With `now` the computation is done, and saved in any case, `without` parts that are then
        not needed, such as an optimizer; not again if it was done when it was restored.

        Raises:
            KeyboardInterrupt: after saving, if Ctrl-C was pressed.
        """
        self._done = self._done and now
        if self.path is None or self._done or not (now or self._interrupted or time.perf_counter() >= self._due):
            return
        began = time.perf_counter()
        self._write(self.path, {name: p.state_dict() for name, p in self._parts.items() if name not in without}, now)
        ended = time.perf_counter()
        self._due = ended + (max(self._pause, (ended - began) / _SHARE) if self._pause else 0.0)
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _write(self, path: Path, state: dict[str, Any], done: bool) -> None:
        head = f"labutils checkpoint {_FORMAT} {{}}\n"
        buffer = io.BytesIO(head.format("0" * 64).encode())
        start = buffer.seek(0, io.SEEK_END)
        torch.save({"settings": self._settings, "state": state, "done": done}, buffer)
        checksum = hashlib.sha256(buffer.getbuffer()[start:]).hexdigest()
        buffer.seek(0)
        buffer.write(head.format(checksum).encode())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getbuffer(), sync=True)

    def _load(self, path: Path) -> dict[str, Any]:
        remedy = "delete it, and the computation starts over"
        header, _, content = path.read_bytes().partition(b"\n")
        found = re.fullmatch(rb"labutils checkpoint (\d+) ([0-9a-f]{64})", header)
        if not found:
            raise ValueError(f"{path} is damaged, or no checkpoint of labutils: {remedy}")
        if int(found[1]) != _FORMAT:
            raise ValueError(f"{path} has format {int(found[1])}; this version of labutils reads {_FORMAT}: {remedy}")
        if hashlib.sha256(content).hexdigest() != found[2].decode():
            raise ValueError(f"{path} is damaged (its content does not fit its checksum): {remedy}")
        try:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            settings, state, self._done = loaded["settings"], loaded["state"], loaded["done"]
        except Exception as error:
            raise ValueError(f"{path} holds something else than a checkpoint of labutils: {remedy}") from error
        if settings != self._settings:
            raise ValueError(
                f"{path} belongs to another computation: {_differences(settings, self._settings)}. Restore what"
                f" differs, or name another file; or {remedy}"
            )
        return state

    def _wait_with_interrupts(self) -> None:
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(previous):
            return

        def note(_signal: int, _frame: FrameType | None) -> None:
            self._interrupted = True
            self._restore_handler()

        self._handler = previous
        signal.signal(signal.SIGINT, note)

    def _restore_handler(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None


def bind(path: str | Path | None, parts: Mapping[str, Part], settings: Callable[[], Mapping[str, Any]]) -> Checkpoint:
    """Return the checkpoint of a computation, bound to everything that decides its numbers; for a `with` statement.

    Args:
        path: the file; None takes a file in the folder `LABUTILS_CHECKPOINTS`, with a name from the SHA-256 of the
            settings, so that every computation has its own. Without such a folder nothing is saved.
        parts: what is saved, by name.
        settings: returns what the computation is bound to, by name; called only if there is a file. Numbers and strings
            are kept as they are, so that an error can name them; of tensors, functions and others the fingerprint is
            kept. "computation" names a function of labutils ("training.fit"): the code that it reaches counts, too, and
            so do the versions of torch and numba.

    Example:
        >>> with bind(None, {}, lambda: {"epochs": 3}) as saved:  # no folder is set here
        ...     saved.keep()
    """
    folder = os.environ.get(FOLDER)
    if path is None and not folder:
        return Checkpoint(None, {}, parts)
    given = settings()
    bound = {name.replace("_", " "): _describe(value) for name, value in given.items()}
    bound |= {"torch": str(torch.__version__), "numba": versions().get("numba")}
    if "computation" in given:  # "training.fit", "part of training.fit"
        code = code_behind(given["computation"].split()[-1], without=_NO_NUMBERS)
        if not code:
            raise ValueError(f"labutils has no {given['computation']}, whose code could be compared")
        bound["code"] = f"SHA-256 {code}"
    bound = json.loads(json.dumps(bound, sort_keys=True))
    if path is None:
        assert folder
        digest = hashlib.sha256(json.dumps([_FORMAT, bound], sort_keys=True).encode()).hexdigest()
        path = Path(folder) / f"{digest}.checkpoint"
    return Checkpoint(Path(path), bound, parts)


def _describe(value: Any) -> Any:
    """Return plain values as JSON has them, and the fingerprint of others."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(v, (bool, int, float, str)) for v in value):
        return list(value)
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        return {str(name): _describe(v) for name, v in value.items()}
    return f"SHA-256 {fingerprint(value)}"


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    missing = "nothing"
    found = []
    for name in {**theirs, **ours}:
        before, now = theirs.get(name, missing), ours.get(name, missing)
        if before == now:
            continue
        shown = [_short(v) for v in (before, now)]
        hidden = any("SHA-256" in s for s in shown) or shown[0] == shown[1]
        found.append(f"other {name}" if hidden else f"{name} {shown[0]}, now {shown[1]}")
    return "; ".join(found)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _seconds() -> float:
    text = os.environ.get(SECONDS, "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{SECONDS} = {text!r}: a number of seconds is needed, 0 or more")
    return seconds
