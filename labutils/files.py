"""Files that are whole at every moment, their hashes, readable JSON, and where the project is.

It imports nothing but Python's own library, so that the command starts at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes | memoryview | str, *, sync: bool = False) -> None:
    """Write a file so that at every moment it is either the old or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        content: What it is to hold; text becomes UTF-8.
        sync: Whether to wait for the disk, so that it also outlives a power failure.

    Raises:
        OSError: As in writing any file. The old one is untouched then, and no scrap is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "note.txt"), "done")
        ...     [path.name for path in Path(folder).iterdir()]
        ['note.txt']
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:  # Ctrl-C, too
        partial.unlink(missing_ok=True)
        raise
    if sync and os.name == "posix":  # the new name, too, must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits.

    Example:
        >>> hash_file(Path(os.devnull))[:12]
        'e3b0c44298fc'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_project(start: Path | None = None) -> Path | None:
    """Return the nearest folder upward (from the working folder, or `start`) that holds notebooks/runs.yaml, or None.

    Example:
        >>> find_project(Path("/")) is None
        True
    """
    here = (start or Path.cwd()).absolute()
    return next((path for path in (here, *here.parents) if (path / "notebooks" / "runs.yaml").is_file()), None)


def layout(document: Mapping[str, Any]) -> str:
    """Return JSON with one line an entry of each section: readable, and a long curve stays one line.

    Raises:
        ValueError: A number is NaN or infinite.

    Example:
        >>> print(layout({"run": "quick", "metrics": {"loss": [0.5, 0.25], "epochs": 2}}))
        {
         "run": "quick",
         "metrics": {
          "loss": [0.5, 0.25],
          "epochs": 2
         }
        }
    """

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def section(value: Any) -> str:
        if isinstance(value, dict) and value:
            return "{\n  " + ",\n  ".join(f"{line(key)}: {line(item)}" for key, item in value.items()) + "\n }"
        if isinstance(value, list) and value:
            return "[\n  " + ",\n  ".join(map(line, value)) + "\n ]"
        return line(value)

    return "{\n " + ",\n ".join(f"{line(key)}: {section(value)}" for key, value in document.items()) + "\n}"
