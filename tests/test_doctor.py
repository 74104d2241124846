"""`labs doctor`: every failure that it can report, simulated; and this installation, which is well."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import distributed.system
import jupyter_client.manager
import numpy as np
import psutil
import pytest
import torch
from jupyter_client.kernelspec import NoSuchKernel

from labs import cli, doctor, runner
from labs.doctor import Finding
from labutils import data
from tests.conftest import ROOT, TinyLab

GIB = 2**30


@pytest.fixture
def lab(tiny_lab: TinyLab, monkeypatch: pytest.MonkeyPatch) -> TinyLab:
    """A lab with one notebook, as the current folder; no data folder is set."""
    tiny_lab.add("21_fit")
    monkeypatch.chdir(tiny_lab.root)
    monkeypatch.setenv("LABUTILS_DATA", str(tiny_lab.root / "data"))
    (tiny_lab.root / "data").mkdir()
    return tiny_lab


def found(check: str, lab: TinyLab | None = None) -> list[Finding]:
    return list(doctor.CHECKS[check](lab.project if lab else None))


def only(check: str, lab: TinyLab | None = None) -> Finding:
    [finding] = found(check, lab)
    return finding


def fails(finding: Finding, *words: str) -> None:
    """It is a failure whose message has the words, and there is a remedy."""
    assert (finding.status, bool(finding.remedy)) == ("failure", True), finding
    assert all(word in finding.message for word in words), finding


# --- As a whole --------------------------------------------------------------------------------------------------


def test_this_installation_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    findings = list(doctor.examine())
    # The machine may be small or without real data: warnings. All else has to be right for the tests to mean anything.
    assert [finding for finding in findings if finding.status == "failure"] == []
    assert {"packages", "kernel", "data", "memory", "disk", "GPU"} == {one.check for one in findings}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, lab: TinyLab, capsys: pytest.CaptureFixture[str]):
    """Call the command with checks that find what is given."""

    def call(*findings: Finding | Exception, words: tuple[str, ...] = ()) -> SimpleNamespace:
        def check(finding):
            def run(project):
                if isinstance(finding, Exception):
                    raise finding
                yield finding

            return run

        monkeypatch.setattr(doctor, "CHECKS", {f"check {i}": check(f) for i, f in enumerate(findings)})
        code = cli.main(["doctor", *words])
        return SimpleNamespace(code=code, out=capsys.readouterr().out)

    return call


OK, WARNING = Finding("disk", "ok", "9 GiB free"), Finding("data", "warning", "mnist not there", "labs data mnist")
FAILURE = Finding("kernel", "failure", "it does not start", "install it")


def test_lines_and_exit_code(told) -> None:
    result = told(OK, WARNING)
    assert result.code == 0
    assert result.out.splitlines() == [
        "ok       disk         9 GiB free",
        "warning  data         mnist not there",
        "                      → labs data mnist",
        "",
        "ready (1 ok, 1 warning)",
    ]
    result = told(OK, WARNING, FAILURE, FAILURE)
    assert result.code == 1
    assert "failure  kernel       it does not start\n                      → install it" in result.out
    assert result.out.endswith("not ready: see the remedies above (1 ok, 1 warning, 2 failure)\n")


def test_json(told) -> None:
    for findings, code in (((OK, WARNING), 0), ((OK, FAILURE), 1)):
        result = told(*findings, words=("--json",))
        document = json.loads(result.out)
        assert result.code == code
        assert document["ready"] is (code == 0)
        assert (document["failure"], document["ok"]) == (code, 1)
        assert document["findings"][1] == vars(findings[1])


def test_a_check_that_breaks_down_is_a_failure_and_the_others_go_on(told) -> None:
    result = told(ZeroDivisionError("one\nlast line"), OK)
    assert result.code == 1
    assert "check 0" in result.out
    assert "ZeroDivisionError: last line" in result.out
    assert "9 GiB free" in result.out


def test_outside_a_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PACKAGE", tmp_path / "elsewhere" / "labutils")
    monkeypatch.setattr(doctor, "CHECKS", {"disk": doctor.CHECKS["disk"]})
    first, *others = doctor.examine(tmp_path)
    fails(first, "no notebooks/runs.yaml")
    assert {finding.status for finding in others} <= {"ok"}


BROKEN = (
    "import sys, runpy\n"
    "class Broken:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name in {names}: raise {error}\n"
    "sys.meta_path.insert(0, Broken())\n"
    "sys.argv = ['doctor', '--json']\n"
    "runpy.run_module('labs.doctor', run_name='__main__')\n"
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("ModuleNotFoundError(name)", "ModuleNotFoundError"),
        ("RuntimeError('operator does not exist')", "operator does"),
    ],
)
def test_it_still_answers_where_packages_are_missing_or_broken(error: str, words: str) -> None:
    """`labs` needs these; `python -m labs.doctor` must say so, rather than end with a traceback."""
    code = BROKEN.format(names=("yaml", "psutil", "torch", "jupyter_client"), error=error)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (1, "")
    failures = {
        one["check"]: one["message"] for one in json.loads(ended.stdout)["findings"] if one["status"] == "failure"
    }
    assert {"labs", "kernel", "memory", "torchvision", "data"} <= set(failures)
    assert words in failures["labs"]


# --- Python and packages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "numpy is missing; the lab needs numpy"), ("1.26.4", "numpy is 1.26.4; the lab needs <3,>=2")],
)
def test_packages(monkeypatch: pytest.MonkeyPatch, version: str | None, message: str) -> None:
    real = metadata.version

    def pretended(name: str) -> str:
        if name != "numpy":
            return real(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(doctor.metadata, "version", pretended)
    finding = only("packages")
    fails(finding, message)
    assert "constraints.txt" in finding.remedy


def test_another_checkout(lab: TinyLab) -> None:
    assert only("packages", lab).status == "ok"  # a released lab has no module of its own
    (lab.root / "labutils").mkdir()
    fails(found("packages", lab)[-1], str(lab.root), str(doctor.PACKAGE))


# --- Jupyter -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoSuchKernel("python3"), "no kernel named 'python3'"),
        (RuntimeError("Kernel died before replying to kernel_info"), "Kernel died"),
        (FileNotFoundError(2, "No such file", "/gone/python"), "/gone/python"),
    ],
)
def test_a_kernel_that_does_not_start(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    def start_new_kernel(**options):
        raise error

    monkeypatch.setattr(jupyter_client.manager, "start_new_kernel", start_new_kernel)
    finding = only("kernel")
    fails(finding, words)
    assert "ipykernel install" in finding.remedy


def kernel_spec(folder: Path, program: list[str], monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    """Make `python3` another kernel than this environment's, as a `--user` installation does."""
    place = folder / "kernels" / "python3"
    place.mkdir(parents=True)
    spec = {"argv": program, "display_name": "Python 3", "language": "python", "env": environment}
    (place / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder))


def test_a_kernel_that_cannot_import_labutils(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "labutils").mkdir()
    (tmp_path / "labutils" / "__init__.py").write_text("raise ImportError('made for the test')")
    program = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel_spec(tmp_path, program, monkeypatch, PYTHONPATH=str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fails(only("kernel"), "cannot import this labutils: ImportError: made for the test")


def test_a_kernel_of_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.prefix
    monkeypatch.setattr(doctor.sys, "prefix", "/another/env")
    fails(only("kernel"), f"it runs in {here}")


# --- Data --------------------------------------------------------------------------------------------------------


def write_mnist(folder: Path) -> Path:
    images, labels = np.zeros((3, 28, 28), np.uint8), np.arange(3)
    np.savez(folder / "mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return folder / "mnist.npz"


def test_data(lab: TinyLab) -> None:
    file = write_mnist(lab.root / "data")
    *there, missing = found("data", lab)
    assert [finding.message for finding in there] == ["digits (embedded)", "shapes (embedded)", f"mnist in {file}"]
    assert {finding.status for finding in there} == {"ok"}
    assert missing.status == "warning"
    assert "fashion_mnist, cifar10 not in" in missing.message
    assert all(word in missing.remedy for word in ("labs data fashion_mnist", "LABUTILS_DATA", "cifar10.npz"))


def test_damaged_data(lab: TinyLab) -> None:
    file = write_mnist(lab.root / "data")
    file.write_bytes(file.read_bytes()[:-100])
    [finding] = [f for f in found("data", lab) if f.status == "failure"]
    fails(finding, str(file), "damaged")
    assert "labs data mnist" in finding.remedy


def test_a_data_folder_that_is_none(lab: TinyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABUTILS_DATA", str(lab.root / "typo"))
    first = found("data", lab)[0]
    assert (first.status, "typo (LABUTILS_DATA) is no folder" in first.message) == ("warning", True)
    (lab.root / "typo").write_text("a file")
    fails(found("data", lab)[0], "typo")


def test_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("torchvision") == []

    def broken():
        raise ImportError("undefined symbol: _ZN5torch3jit17parseSchemaOrNameE")

    monkeypatch.setattr(data, "_torchvision_datasets", broken)
    fails(only("torchvision"), "undefined symbol")


# --- The machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gib", "status"), [(5.0, "ok"), (0.6, "warning"), (0.1, "failure")])
def test_disk(lab: TinyLab, monkeypatch: pytest.MonkeyPatch, gib: float, status: str) -> None:
    asked = []

    def disk_usage(folder: str) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=gib * GIB)

    monkeypatch.setattr(psutil, "disk_usage", disk_usage)
    images, results = found("disk", lab)
    assert [results.status, images.status] == [status, status]
    assert asked == [str(lab.root / "data"), str(lab.root)]  # results/ is not there yet
    if status != "ok":
        assert f"{gib:.1f} GiB free" in results.message
        assert "--out DIR" in results.remedy
        assert "LABUTILS_DATA" in images.remedy


@pytest.mark.parametrize(
    ("free", "limit", "status"), [(8, 16, "ok"), (1.5, 16, "warning"), (0.5, 16, "failure"), (8, 1.5, "warning")]
)
def test_memory(monkeypatch: pytest.MonkeyPatch, free: float, limit: float, status: str) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * GIB))
    monkeypatch.setattr(distributed.system, "MEMORY_LIMIT", limit * GIB)
    monkeypatch.setattr(runner, "count_cores", lambda: 4)
    finding = only("memory")
    assert finding.status == status
    assert status == "ok" or "--jobs 1" in finding.remedy


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert only("GPU").status == "ok"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/" + name)
    assert only("GPU").status == "warning"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Made-up 9000")
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda n, device: ones(n))
    assert only("GPU").message.startswith("Made-up 9000: labs run --device cuda")

    def no_kernel(n, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch, "ones", no_kernel)
    finding = only("GPU")
    fails(finding, "Made-up 9000", "no kernel image")
    assert "--device cpu" in finding.remedy


def test_results_that_cannot_be_written(lab: TinyLab) -> None:
    assert [one.status for one in found("disk", lab)] == ["ok", "ok"]
    assert not lab.results.exists()  # it looks, and leaves nothing behind
    lab.results.write_text("a file where the folder should be")
    finding = found("disk", lab)[-1]
    fails(finding, str(lab.results), "cannot be written")
    assert "--out DIR" in finding.remedy
