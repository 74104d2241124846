"""``labs doctor``: is this installation ready for the lab, and if not, what helps?

Every check looks at the thing itself, as the lab will use it: the kernel is started, the data sets are read, a file is
written where results go. At its top the module imports nothing but the standard library, so that
``python -m labs.doctor`` still answers where a missing or broken package keeps ``labs`` from starting.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import labutils
from labutils import __version__

if TYPE_CHECKING:
    from labs.runner import Project

Status = Literal["ok", "warning", "failure"]
PACKAGE = Path(labutils.__file__).parent
GIB = 2**30
KERNEL = "python3"  # the kernel that every notebook of the lab names
KERNEL_SECONDS = 60.0
INSTALL = "in the lab's folder: python -m pip install -c constraints.txt -e ."
# All quick results take 0.02 GiB, the rest is for the checkpoints of long runs; CIFAR-10 takes 0.35 GiB while it is
# unpacked; the process of a quick run has its peak between 0.5 and 1 GiB.
RESULTS_GIB, DOWNLOAD_GIB, NOTEBOOK_GIB = 1.0, 1.0, 1.0


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str  # what was looked at, such as "kernel"
    status: Status  # "warning": the lab works, with limits; "failure": something of it does not work
    message: str
    remedy: str = ""  # what helps; never empty for a failure


def examine(start: Path | None = None) -> Iterator[Finding]:
    """Check the installation, one thing after the other; a check that breaks down is a failure itself and stops no
    other.
    """
    project = None
    try:
        from labs import runner
    except Exception as error:  # broken in whatever way: the other checks may say why
        yield Finding("labs", "failure", f"it cannot be imported: {_short(error)}", INSTALL)
    else:
        try:
            project = runner.find_project(start)
        except runner.LabsError as error:
            yield Finding("lab", "failure", str(error), "change to the folder that holds notebooks/ and book/")
    for name, check in CHECKS.items():
        try:
            yield from check(project)
        except Exception as error:
            yield Finding(name, "failure", f"the check broke down: {_short(error)}", f"see above, or {INSTALL}")


def main(*, as_json: bool = False) -> int:
    """Examine the installation, and print what was found; return 1 after a failure, else 0."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            print(_lines(finding), flush=True)
    count = {status: sum(finding.status == status for finding in findings) for status in ("ok", "warning", "failure")}
    if as_json:
        versions = {"labutils": __version__, "python": platform.python_version(), "platform": platform.platform()}
        document = {"ready": not count["failure"], **count, **versions, "findings": list(map(asdict, findings))}
        print(json.dumps(document, indent=1))
    else:
        told = ", ".join(f"{number} {status}" for status, number in count.items() if number)
        print(f"\n{'not ready: see the remedies above' if count['failure'] else 'ready'} ({told})")
    return 1 if count["failure"] else 0


def _lines(finding: Finding) -> str:
    """A finding as lines of text; the remedy is on a line of its own."""
    head = f"{finding.status:<8} {finding.check:<12} "
    width, indent = max(shutil.get_terminal_size((120, 24)).columns, 60), " " * len(head)
    texts = {head: finding.message, f"{indent}→ ": finding.remedy}
    return "\n".join(
        textwrap.fill(text, width, initial_indent=first, subsequent_indent=indent, break_long_words=False)
        for first, text in texts.items()
        if text
    )


def _short(error: BaseException) -> str:
    """An error's kind and the last line of its message, cut to a readable length."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(f"{type(error).__name__}: {lines[-1] if lines else 'no message'}", 200)


# --- Python and packages -----------------------------------------------------------------------------------------


def _packages(project: Project | None) -> Iterator[Finding]:
    from packaging.requirements import Requirement

    problems = []
    for requirement in map(Requirement, metadata.requires("labutils") or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing; the lab needs {requirement}")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} is {found}; the lab needs {requirement.specifier}")
    for problem in problems:
        yield Finding("packages", "failure", problem, INSTALL)
    if not problems:
        version = platform.python_version()
        yield Finding("packages", "ok", f"Python {version} in {sys.prefix}, all packages in their ranges")
    own = project.root / "labutils" if project else PACKAGE
    if own.is_dir() and own.resolve() != PACKAGE.resolve():
        message = f"{__version__} in {PACKAGE}, but the lab here is {own.parent}"
        yield Finding("labutils", "failure", message, f"{INSTALL} (or work in the other folder)")


# --- Jupyter -----------------------------------------------------------------------------------------------------


def _kernel(project: Project | None) -> Iterator[Finding]:
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_client.manager import start_new_kernel

    remedy = f"python -m ipykernel install --sys-prefix --name {KERNEL}, with the Python that runs labs"
    try:
        manager, client = start_new_kernel(
            startup_timeout=KERNEL_SECONDS, kernel_name=KERNEL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except NoSuchKernel:
        yield Finding("kernel", "failure", f"Jupyter knows no kernel named {KERNEL!r}", remedy)
        return
    except (RuntimeError, OSError) as error:  # it died, did not answer, or its program is not there
        yield Finding("kernel", "failure", f"{KERNEL!r} does not start: {_short(error)}", remedy)
        return
    asked = (
        f"import sys, labutils.record\nif sys.prefix != {sys.prefix!r}: raise RuntimeError('it runs in ' + sys.prefix)"
    )
    try:
        reply = client.execute(asked, reply=True, timeout=KERNEL_SECONDS)["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if reply["status"] == "ok":
        yield Finding("kernel", "ok", f"{KERNEL!r} starts in this environment and imports labutils")
    else:
        error = f"{reply.get('ename')}: {reply.get('evalue')}"
        yield Finding("kernel", "failure", f"{KERNEL!r} cannot import this labutils: {error}", remedy)


# --- Data --------------------------------------------------------------------------------------------------------


def _data(project: Project | None) -> Iterator[Finding]:
    from labutils import data

    folder = data._folder()
    given = os.environ.get("LABUTILS_DATA")
    where = f"{folder} (LABUTILS_DATA)" if given else f"{folder} (LABUTILS_DATA is not set)"
    if given and not folder.is_dir():
        remedy = "set LABUTILS_DATA to the folder that holds mnist.npz and cifar10.npz, or unset it"
        yield Finding("data", "failure" if folder.exists() else "warning", f"{where} is no folder", remedy)
    missing = []
    for name in data.names():
        file = None if name in data._EMBEDDED else folder / f"{name}.npz"
        if file and not file.exists():
            missing.append(name)
            continue
        try:
            loaded = data.load(name, n_train=1, n_test=1)  # reads, and compares the checksums of, the whole file
        except data.DamagedDataError as error:
            remedy = f"delete the file and run: labs data {name}; without the network, replace it by a good copy"
            yield Finding("data", "failure", _short(error), remedy)
            continue
        except OSError as error:
            yield Finding("data", "failure", f"{file} cannot be read: {_short(error)}", "give yourself permission")
            continue
        yield Finding("data", "ok", f"{name} {f'in {loaded.file}' if loaded.file else '(embedded)'}")
    if missing:
        files = ", ".join(f"{name}.npz" for name in missing)
        text = f"{', '.join(missing)} not in {where}; quick runs need only the embedded data"
        remedy = f"labs data {missing[0]} downloads; without the network, copy {files} there or set LABUTILS_DATA"
        yield Finding("data", "warning", text, remedy)


def _torchvision(project: Project | None) -> Iterator[Finding]:
    from labutils import data

    try:
        data._torchvision_datasets()  # declares what operators are missing, see there
    except Exception as error:  # compiled against another torch, anything can happen
        remedy = f"install the torch and torchvision that belong together; {INSTALL}"
        yield Finding("torchvision", "failure", f"it cannot be imported: {_short(error)}", remedy)


# --- The machine -------------------------------------------------------------------------------------------------


def _disk(project: Project | None) -> Iterator[Finding]:
    import psutil

    from labutils import data

    needs = [(data._folder(), DOWNLOAD_GIB, "data sets", "set LABUTILS_DATA to a folder elsewhere")]
    if project:
        needs.append(
            (project.results, RESULTS_GIB, "results", "give labs run and labs book a folder elsewhere: --out DIR")
        )
    for folder, gib, what, remedy in needs:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = psutil.disk_usage(str(existing)).free / GIB
        try:
            with tempfile.TemporaryFile(dir=existing) as file:
                file.write(b"labutils")
        except OSError as error:
            message = f"{what}: {folder} cannot be written: {error.strerror or error}"
            yield Finding("disk", "failure", message, f"give yourself permission, or {remedy}")
            continue
        status: Status = "ok" if free >= gib else "warning" if free > gib / 4 else "failure"
        message = f"{free:.1f} GiB free for {what} in {folder}; {gib:g} GiB may be needed"
        yield Finding("disk", status, message, "" if status == "ok" else f"make room, or {remedy}")


def _memory(project: Project | None) -> Iterator[Finding]:
    import psutil
    from distributed.system import MEMORY_LIMIT  # of a container, which the machine's own numbers do not show

    from labs import runner

    available = min(psutil.virtual_memory().available, MEMORY_LIMIT) / GIB
    cores = runner.count_cores()
    message = f"{available:.1f} GiB free for {cores} cores; a quick run takes 0.5 to {NOTEBOOK_GIB:g}"
    if available >= NOTEBOOK_GIB * min(cores, 2):
        yield Finding("memory", "ok", message)
    else:
        status: Status = "warning" if available >= NOTEBOOK_GIB else "failure"
        yield Finding("memory", status, message, "close other programs, and run one at a time: labs run --jobs 1")


def _gpu(project: Project | None) -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            remedy = "for the long runs, install a torch built for CUDA and a driver that fits it"
            yield Finding("GPU", "warning", f"there seems to be one, but torch {torch.__version__} sees none", remedy)
        else:
            yield Finding("GPU", "ok", "none; every notebook runs on the processor")
        return
    name = torch.cuda.get_device_name()
    try:
        torch.ones(8, device="cuda").sum().item()
    except Exception as error:  # too old for this build, no memory left, a driver that does not fit
        remedy = "update the driver, or compute on the processor: labs run --device cpu"
        yield Finding("GPU", "failure", f"{name} does not compute: {_short(error)}", remedy)
    else:
        yield Finding("GPU", "ok", f"{name}: labs run --device cuda uses it")


CHECKS: dict[str, Callable[[Project | None], Iterator[Finding]]] = {
    "packages": _packages,
    "kernel": _kernel,
    "data": _data,
    "torchvision": _torchvision,
    "memory": _memory,
    "disk": _disk,
    "GPU": _gpu,
}

if __name__ == "__main__":
    sys.exit(main(as_json="--json" in sys.argv[1:]))
