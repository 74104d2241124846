"""labutils.files: nothing is left half-written, and the project is found from anywhere in it."""

import contextlib
import hashlib
import os
import subprocess
import sys

import pytest

from labutils.files import find_project, hash_file, write_atomically


@pytest.mark.parametrize("sync", [False, True])
def test_text_and_bytes_are_written_with_the_usual_permissions(tmp_path, sync):
    (tmp_path / "plain").touch()
    path = tmp_path / "note.txt"
    write_atomically(path, "größer\n", sync=sync)
    assert path.read_bytes() == "größer\n".encode()
    write_atomically(path, b"\r\n", sync=sync)
    assert path.read_bytes() == b"\r\n"
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(one.name for one in tmp_path.iterdir()) == ["note.txt", "plain"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path, monkeypatch, step, error):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write_atomically(path, "new", sync=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize("where", [".", "notebooks", "notebooks/deep/down"])
def test_the_project_is_found_from_anywhere_in_it(tmp_path, where):
    (tmp_path / "lab" / "notebooks" / "deep" / "down").mkdir(parents=True)
    assert find_project(tmp_path / "lab" / where) is None
    (tmp_path / "lab" / "notebooks" / "runs.yaml").touch()
    assert find_project(tmp_path / "lab" / where) == tmp_path / "lab"
    with contextlib.chdir(tmp_path / "lab" / where):
        assert find_project() == tmp_path / "lab"


def test_it_imports_nothing_but_pythons_own():
    told = "import sys; before = set(sys.modules); import labutils.files; print(*(set(sys.modules) - before))"
    modules = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in modules} <= {"labutils", *sys.stdlib_module_names}
