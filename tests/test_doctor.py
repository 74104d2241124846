"""`labs doctor`: every failure that it can report, simulated; and this installation, which is well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

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
    assert [f for f in findings if f.status == "failure"] == []
    assert {"Python", "packages", "labutils", "kernel", "notebooks", "data", "torchvision", "processor", "memory",
            "disk", "results", "GPU", "Chromium", "nbgrader"} == {f.check for f in findings}  # fmt: skip
    [kernel] = [f for f in findings if f.check == "kernel"]
    assert kernel.status == "ok"
    assert "imports labutils" in kernel.message


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
        "✔ ok       disk         9 GiB free",
        "! warning  data         mnist not there",
        "                        → labs data mnist",
        "",
        "ready (1 warning, 1 ok)",
    ]
    result = told(OK, WARNING, FAILURE, FAILURE)
    assert result.code == 1
    assert "✘ failure  kernel       it does not start\n                        → install it" in result.out
    assert result.out.endswith("not ready: see the remedies above (2 failures, 1 warning, 1 ok)\n")


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


def test_a_failure_needs_a_remedy() -> None:
    with pytest.raises(ValueError, match="remedy"):
        Finding("disk", "failure", "full")


def test_long_lines_are_wrapped_under_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    lines = doctor._lines(Finding("data", "warning", "word " * 30, "/a/very/long/path " * 5)).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 70
    assert all(line.startswith(" " * 24) for line in lines[1:])


def test_outside_a_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PACKAGE", tmp_path / "elsewhere" / "labutils")
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in ("notebooks", "results", "disk")})
    first, *others = doctor.examine(tmp_path)
    fails(first, "no notebooks/runs.yaml")
    assert {finding.status for finding in others} <= {"ok"}


def test_it_still_answers_where_packages_are_missing() -> None:
    """`labs` needs click; `python -m labs.doctor` must say so, rather than end with a traceback."""
    hide = (
        "import sys, importlib.metadata as m, runpy\n"
        "for name in ('click', 'psutil', 'torch', 'nbformat', 'jupyter_client', 'yaml'): sys.modules[name] = None\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name in ('click', 'psutil'): raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "sys.argv = ['doctor', '--json']\n"
        "runpy.run_module('labs.doctor', run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (1, "")
    failures = [f for f in json.loads(ended.stdout)["findings"] if f["status"] == "failure"]
    packages = [f["message"].split()[0] for f in failures if f["check"] == "packages"]
    assert packages == ["click", "psutil"]
    assert {"kernel", "memory", "torchvision"} <= {f["check"] for f in failures}


# --- Python and packages -----------------------------------------------------------------------------------------


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only("Python").status == "ok"
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.14")
    fails(only("Python"), "3.10.14", ">=3.11")


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


def test_packages_other_than_the_pinned_ones_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pinned = doctor._pinned(ROOT / "constraints.txt")
    assert pinned["torch"] == "2.13.0"
    assert {"pre-commit", "pyyaml"} <= set(pinned)  # named as pip compares them
    monkeypatch.setattr(doctor, "_pinned", lambda file: {"numpy": "2.0.1"})
    finding = only("packages")
    assert finding.status == "ok"
    assert f"numpy {metadata.version('numpy')} (2.0.1)" in finding.message
    assert "torch" not in finding.message


def test_without_a_checkout_the_metadata_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path / "labutils")
    declared = doctor._declared()
    assert declared["requires-python"] == ">=3.11"
    names = {requirement.name for requirement in doctor._requirements()}
    assert {"torch", "papermill"} <= names
    assert not {"pytest", "nbgrader"} & names  # of extras
    assert found("optional")  # without knowing the range


def test_another_checkout(lab: TinyLab) -> None:
    assert only("labutils", lab).status == "ok"  # a released lab has no module of its own
    (lab.root / "labutils").mkdir()
    fails(only("labutils", lab), str(lab.root), str(doctor.PACKAGE))


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


def test_a_kernel_whose_program_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel_spec(tmp_path, [sys.executable, "-c", "raise SystemExit(3)", "{connection_file}"], monkeypatch)
    fails(only("kernel"), "does not start")


def test_a_kernel_that_cannot_import_labutils(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "labutils").mkdir()
    (tmp_path / "labutils" / "__init__.py").write_text("raise ImportError('made for the test')")
    program = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel_spec(tmp_path, program, monkeypatch, PYTHONPATH=str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fails(only("kernel"), "importing labutils fails: ImportError: made for the test")


def test_a_kernel_of_another_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_ask", lambda client, code, expression: ("/another/env", ""))
    fails(only("kernel"), "/another/env", sys.prefix)


def test_notebooks(lab: TinyLab) -> None:
    lab.name_runs({"21_fit": {"d1": {"n": 9}}})
    assert only("notebooks", lab).message.startswith("1 in ")
    lab.name_runs({"no_such": {"d1": {"n": 9}}})
    fails(only("notebooks", lab), "no_such")
    lab.name_runs({})
    (lab.project.notebooks / "21_fit.ipynb").unlink()
    fails(only("notebooks", lab), "none")


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


def test_data_without_permission(lab: TinyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(lab.root / "data")
    real = data.load

    def load(name: str, **options):
        if name == "mnist":
            raise PermissionError(13, "Permission denied")
        return real(name, **options)

    monkeypatch.setattr(data, "load", load)
    [finding] = [f for f in found("data", lab) if f.status == "failure"]
    fails(finding, "mnist.npz cannot be read", "Permission denied")


def test_broken_embedded_data(lab: TinyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken():
        raise RuntimeError("scikit-learn's file is gone")

    monkeypatch.setitem(data._EMBEDDED, "digits", broken)
    monkeypatch.setattr(doctor, "CHECKS", {"data": doctor.CHECKS["data"]})
    fails(list(doctor.examine())[-1], "scikit-learn's file is gone")


def test_a_data_folder_that_is_none(lab: TinyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABUTILS_DATA", str(lab.root / "typo"))
    first = found("data", lab)[0]
    assert (first.status, "typo (LABUTILS_DATA) is no folder" in first.message) == ("warning", True)
    (lab.root / "typo").write_text("a file")
    fails(found("data", lab)[0], "typo")


def test_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only("torchvision").status == "ok"

    def broken():
        raise ImportError("undefined symbol: _ZN5torch3jit17parseSchemaOrNameE")

    monkeypatch.setattr(data, "_torchvision_datasets", broken)
    fails(only("torchvision"), "undefined symbol")


@pytest.mark.parametrize(
    ("nms", "words"),
    [
        (lambda *_: torch.tensor([0]), "with its compiled operators"),
        ((NotImplementedError, "Could not run"), "without its compiled operators"),
        ((RuntimeError, "no operator nms"), "without its compiled operators"),
    ],
)
def test_torchvision_operators(monkeypatch: pytest.MonkeyPatch, nms, words: str) -> None:
    def fail(*_):
        raise nms[0](nms[1])

    monkeypatch.setattr(data, "_torchvision_datasets", lambda: None)
    namespace = SimpleNamespace(nms=nms if callable(nms) else fail)
    monkeypatch.setattr(torch, "ops", SimpleNamespace(torchvision=namespace))
    finding = only("torchvision")
    assert finding.status == "ok"
    assert words in finding.message


# --- The machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gib", "status"), [(5.0, "ok"), (0.6, "warning"), (0.1, "failure")])
def test_disk(lab: TinyLab, monkeypatch: pytest.MonkeyPatch, gib: float, status: str) -> None:
    asked = []

    def disk_usage(folder: str) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=gib * GIB)

    monkeypatch.setattr(psutil, "disk_usage", disk_usage)
    results, images = found("disk", lab)
    assert [results.status, images.status] == [status, status]
    assert asked == [str(lab.root), str(lab.root / "data")]  # results/ is not there yet
    if status != "ok":
        assert f"{gib:.1f} GiB free" in results.message
        assert "--out DIR" in results.remedy
        assert "LABUTILS_DATA" in images.remedy


Memory = namedtuple("Memory", "total available")


@pytest.mark.parametrize(
    ("free", "groups", "status"),
    [
        (8, {}, "ok"),
        (1.5, {}, "warning"),
        (0.5, {}, "failure"),
        (8, {"memory.max": [2 * GIB], "memory.current": [int(0.7 * GIB)]}, "warning"),
        (8, {"memory.max": [2 * GIB], "memory.current": [int(1.5 * GIB)]}, "failure"),
        (8, {"memory.max": [4 * GIB]}, "ok"),
        (8, {"memory.max": [32 * GIB]}, "ok"),
    ],
)
def test_memory(monkeypatch: pytest.MonkeyPatch, free: float, groups: dict, status: str) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(16 * GIB, free * GIB))
    monkeypatch.setattr(doctor, "_control_group", groups.get)
    monkeypatch.setattr(doctor, "_cores", lambda: 4)
    finding = only("memory")
    assert finding.status == status
    if status != "ok":
        assert "--jobs 1" in finding.remedy


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert only("processor") == Finding("processor", "ok", "2 cores to use, torch computes with 2 threads")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    finding = only("processor")
    assert finding.status == "warning"
    assert "OMP_NUM_THREADS=2" in finding.remedy


def test_cores_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for quota, cores in ((None, 8), ([200_000, 100_000], 2), ([50_000, 100_000], 1), ([1_600_000, 100_000], 8)):
        monkeypatch.setattr(doctor, "_control_group", {"cpu.max": quota}.get)
        assert doctor._cores() == cores


def test_limits_of_a_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "Path", lambda *parts: tmp_path / parts[-1])
    assert doctor._control_group("memory.max") is None
    for text, numbers in (("max\n", None), ("max 100000\n", None), ("150000 100000\n", [150_000, 100_000])):
        (tmp_path / "cpu.max").write_text(text)
        assert doctor._control_group("cpu.max") == numbers


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
    assert only("results", lab).status == "ok"
    assert not lab.results.exists()  # it looks, and leaves nothing behind
    lab.results.write_text("a file where the folder should be")
    finding = only("results", lab)
    fails(finding, str(lab.results), "cannot be written")
    assert "--out DIR" in finding.remedy


def test_optional_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    browser, nbgrader = found("optional")
    assert (browser.status, browser.remedy) == ("ok", "optional: install your system's package chromium")
    assert nbgrader.check == "nbgrader"
    for version, status in ((None, "ok"), ("0.8.1", "warning"), ("0.9.6", "ok")):

        def pretended(name: str, version: str | None = version) -> str:
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(doctor.metadata, "version", pretended)
        finding = found("optional")[1]
        assert finding.status == status
        assert ("[teach]" in finding.remedy) == (version != "0.9.6")
