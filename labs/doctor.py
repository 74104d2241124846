"""``labs doctor``: is this installation ready for the lab, and if not, what helps?

Every check looks at the thing itself, as the lab will use it: the kernel is started, the data sets are read, a file is
written where results go. At its top the module imports nothing but the standard library, so that
``python -m labs.doctor`` still answers where a missing package keeps ``labs`` from starting.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import labutils
from labutils import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from labs.runner import Project

Status = Literal["ok", "warning", "failure"]
SYMBOLS: dict[Status, str] = {"ok": "✔", "warning": "!", "failure": "✘"}
PACKAGE = Path(labutils.__file__).parent
GIB = 2**30
KERNEL = "python3"  # the kernel that every notebook of the lab names
KERNEL_SECONDS = 60.0
INSTALL = "in the lab's folder: python -m pip install -c constraints.txt -e ."
# All quick results take 0.02 GiB, the rest is for the checkpoints of long runs; CIFAR-10 takes 0.35 GiB while it is
# unpacked; the process of a quick run has its peak between 0.5 and 1 GiB.
RESULTS_GIB, DOWNLOAD_GIB, NOTEBOOK_GIB = 1.0, 1.0, 1.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at, such as "kernel".
        status: "ok", "warning" (the lab works, with limits) or "failure" (something of it does not work).
        message: what is so, in words.
        remedy: what helps; never empty for a failure.
    """

    check: str
    status: Status
    message: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.status == "failure" and not self.remedy:
            raise ValueError(f"{self.check}: a failure without a remedy helps nobody")


def examine(start: Path | None = None) -> Iterator[Finding]:
    """Check the installation, one thing after the other; takes some ten seconds.

    Args:
        start: where to look for the lab, here and upward; the current folder by default.

    Yields:
        The findings, as they come. A check that breaks down is a failure itself and does not stop the others.
    """
    project = None
    try:
        from labs import runner

        project = runner.find_project(start)
    except ImportError:
        pass  # the packages' check names what is missing
    except runner.LabsError as error:
        yield Finding("lab", "failure", str(error), "change to the folder that holds notebooks/ and book/")
    for name, check in CHECKS.items():
        try:
            yield from check(project)
        except Exception as error:  # whatever is broken here, the other checks still have something to say
            message = f"the check broke down with {type(error).__name__}: {_short(error)}"
            yield Finding(name, "failure", message, f"if the lines above do not explain it, {INSTALL}")


def main(*, as_json: bool = False) -> int:
    """Examine the installation and print what was found.

    Args:
        as_json: print one JSON object in place of the lines.

    Returns:
        The exit code: 1 if there is a failure, else 0.
    """
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            print(_lines(finding), flush=True)
    count = {status: sum(finding.status == status for finding in findings) for status in SYMBOLS}
    if as_json:
        versions = {"labutils": __version__, "python": platform.python_version(), "platform": platform.platform()}
        document = {"ready": not count["failure"], **count, **versions, "findings": list(map(asdict, findings))}
        print(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        names = {"failure": "failures", "warning": "warnings"}
        told = [f"{count[s]} {s if count[s] == 1 else plural}" for s, plural in names.items() if count[s]]
        told.append(f"{count['ok']} ok")
        ready = "not ready: see the remedies above" if count["failure"] else "ready"
        print(f"\n{ready} ({', '.join(told)})")
    return 1 if count["failure"] else 0


def _lines(finding: Finding) -> str:
    """A finding as lines of text; the remedy is on a line of its own."""
    width = max(shutil.get_terminal_size((120, 24)).columns, 60)
    head = f"{SYMBOLS[finding.status]} {finding.status:<8} {finding.check:<12} "
    indent = " " * len(head)
    keep = {"width": width, "subsequent_indent": indent, "break_long_words": False, "break_on_hyphens": False}
    text = textwrap.fill(finding.message, initial_indent=head, **keep)
    if finding.remedy:
        text += "\n" + textwrap.fill(f"→ {finding.remedy}", initial_indent=indent, **keep)
    return text


def _short(error: BaseException) -> str:
    """The last line of an error's message, cut to a readable length."""
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[-1], 200) if lines else "no message"


# --- Python and packages -----------------------------------------------------------------------------------------


def _python(project: Project | None) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    wanted, version = SpecifierSet(_declared()["requires-python"]), platform.python_version()
    if wanted.contains(version, prereleases=True):
        yield Finding("Python", "ok", f"{version} in {sys.prefix}")
    else:
        remedy = (
            "make a new environment with a newer Python: make book PYTHON=python3.11, or conda as in environment.yml"
        )
        yield Finding("Python", "failure", f"{version}, but the lab needs {wanted}", remedy)


def _packages(project: Project | None) -> Iterator[Finding]:
    from packaging.utils import canonicalize_name

    requirements = _requirements()
    problems = [problem for requirement in requirements if (problem := _unmet(requirement))]
    for problem in problems:
        yield Finding("packages", "failure", problem, INSTALL)
    if problems:
        return
    pinned, other = _pinned(PACKAGE.parent / "constraints.txt"), []
    for name in (requirement.name for requirement in requirements):
        version = metadata.version(name)
        wanted = pinned.get(canonicalize_name(name))
        if wanted and version.split("+")[0] != wanted:  # 2.13.0+cpu is 2.13.0, built for the processor
            other.append(f"{name} {version} ({wanted})")
    text = f"{len(requirements)} packages, all in the ranges of pyproject.toml"
    if other:
        text += f"; not those of constraints.txt, in parentheses: {', '.join(other)}"
    yield Finding("packages", "ok", text)


def _declared() -> dict[str, Any]:
    """What labutils declares in pyproject.toml, or, installed without its checkout, in its metadata."""
    with contextlib.suppress(FileNotFoundError):
        return tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = metadata.metadata("labutils")
    lines = [line for line in metadata.requires("labutils") or [] if "extra ==" not in line]
    return {"requires-python": about["Requires-Python"], "dependencies": lines}


def _requirements() -> list[Requirement]:
    from packaging.requirements import Requirement

    found = [Requirement(line) for line in _declared()["dependencies"]]
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate()]


def _unmet(requirement: Requirement) -> str:
    """In what way a requirement is not met, or nothing."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing; the lab needs {requirement}"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} is {version}; the lab needs {requirement.specifier}"


def _pinned(constraints: Path) -> dict[str, str]:
    """The exact versions of a constraints file, by name; none without the file."""
    from packaging.utils import canonicalize_name

    if not constraints.is_file():
        return {}
    found = re.findall(r"^([\w.-]+)==(\S+)", constraints.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def _labutils(project: Project | None) -> Iterator[Finding]:
    message = f"{__version__} in {PACKAGE}"
    own = project.root / "labutils" if project else PACKAGE
    if own.is_dir() and own.resolve() != PACKAGE.resolve():
        remedy = f"{INSTALL} (or work in the other folder)"
        yield Finding("labutils", "failure", f"{message}, but the lab here is {own.parent}", remedy)
    else:
        yield Finding("labutils", "ok", message)


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
    try:
        prefix, error = _ask(client, "import sys, labutils.record", "sys.prefix")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if error:
        yield Finding("kernel", "failure", f"in the kernel {KERNEL!r}, importing labutils fails: {error}", remedy)
    elif Path(prefix).resolve() != Path(sys.prefix).resolve():
        yield Finding("kernel", "failure", f"{KERNEL!r} runs in {prefix}, not in {sys.prefix}", remedy)
    else:
        yield Finding("kernel", "ok", f"{KERNEL!r} starts in this environment and imports labutils")


def _ask(client: Any, code: str, expression: str) -> tuple[str, str]:
    """Run code in a kernel; return an expression's value as text, and the error if there was one."""
    reply = client.execute(code, user_expressions={"it": expression}, reply=True, timeout=KERNEL_SECONDS)["content"]
    if reply["status"] != "ok":
        return "", f"{reply.get('ename')}: {reply.get('evalue')}"
    return reply["user_expressions"]["it"]["data"]["text/plain"].strip("'\""), ""


def _notebooks(project: Project | None) -> Iterator[Finding]:
    if project is None:
        return  # said already
    from labs import runner

    remedy = "get the lab's notebooks again (git restore notebooks), or mend what the message names"
    try:
        found = runner.load_notebooks(project)
    except runner.LabsError as error:
        yield Finding("notebooks", "failure", str(error), remedy)
        return
    if not found:
        yield Finding("notebooks", "failure", f"there is none in {project.notebooks}", remedy)
        return
    runs = sum(len(notebook.runs) for notebook in found.values())
    yield Finding("notebooks", "ok", f"{len(found)} in {project.notebooks}, {runs} named runs")


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
    import torch

    from labutils import data

    try:
        data._torchvision_datasets()  # declares what operators are missing, see there
    except Exception as error:  # compiled against another torch, anything can happen
        remedy = f"install the torch and torchvision that belong together; {INSTALL}"
        yield Finding("torchvision", "failure", f"it cannot be imported: {_short(error)}", remedy)
        return
    version = metadata.version("torchvision")
    try:
        torch.ops.torchvision.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (NotImplementedError, RuntimeError):
        message = f"{version}, without its compiled operators (built for another torch); the lab needs none of them"
        yield Finding("torchvision", "ok", message)
    else:
        yield Finding("torchvision", "ok", f"{version} with its compiled operators")


# --- The machine -------------------------------------------------------------------------------------------------


def _disk(project: Project | None) -> Iterator[Finding]:
    import psutil

    from labutils import data

    needs = [(data._folder(), DOWNLOAD_GIB, "data sets", "set LABUTILS_DATA to a folder on a larger disk")]
    if project:
        remedy = "make room, or give labs run and labs book a folder elsewhere: --out DIR"
        needs.insert(0, (project.results, RESULTS_GIB, "results", remedy))
    for folder, gib, what, remedy in needs:
        free = psutil.disk_usage(str(_existing(folder))).free / GIB
        message = f"{free:.1f} GiB free for {what} in {folder}"
        if free >= gib:
            yield Finding("disk", "ok", message)
        else:
            status: Status = "warning" if free > gib / 4 else "failure"
            yield Finding("disk", status, f"{message}; {gib:g} GiB may be needed", remedy)


def _memory(project: Project | None) -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    limit = _control_group("memory.max")  # of a container, which the machine's own numbers do not show
    total, available = memory.total / GIB, memory.available / GIB
    if limit and limit[0] < memory.total:
        used = (_control_group("memory.current") or [0])[0]
        total, available = limit[0] / GIB, min(available, (limit[0] - used) / GIB)
    cores = _cores()
    message = f"{available:.1f} of {total:.1f} GiB free; a quick run takes 0.5 to {NOTEBOOK_GIB:g}"
    if available >= NOTEBOOK_GIB * min(cores, 2):
        yield Finding("memory", "ok", message)
    elif available >= NOTEBOOK_GIB:
        yield Finding("memory", "warning", message, "run one notebook at a time: labs run --jobs 1")
    else:
        remedy = "close other programs and running notebooks, then labs run --jobs 1"
        yield Finding("memory", "failure", message, remedy)


def _processor(project: Project | None) -> Iterator[Finding]:
    import torch

    cores, threads = _cores(), torch.get_num_threads()
    message = f"{cores} core{'s' * (cores > 1)} to use, torch computes with {threads} thread{'s' * (threads > 1)}"
    if threads > cores:
        remedy = f"export OMP_NUM_THREADS={cores}: more threads than cores slow small networks down many times"
        yield Finding("processor", "warning", message, remedy)
    else:
        yield Finding("processor", "ok", message)


def _gpu(project: Project | None) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        try:
            assert torch.ones(8, device="cuda").sum().item() == 8
        except Exception as error:  # too old for this build, no memory left, a driver that does not fit
            remedy = "update the driver, or compute on the processor: labs run --device cpu"
            yield Finding("GPU", "failure", f"{name} does not compute: {_short(error)}", remedy)
        else:
            yield Finding("GPU", "ok", f"{name}: labs run --device cuda uses it")
    elif shutil.which("nvidia-smi"):
        remedy = "for the long runs, install a torch built for CUDA and a driver that fits it"
        yield Finding("GPU", "warning", f"there seems to be one, but torch {torch.__version__} sees none", remedy)
    else:
        yield Finding("GPU", "ok", "none; every notebook runs on the processor")


def _results(project: Project | None) -> Iterator[Finding]:
    if project is None:
        return
    folder = _existing(project.results)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"labutils")
    except OSError as error:
        remedy = "give yourself permission to write there, or name another folder: labs run --out DIR"
        yield Finding("results", "failure", f"{project.results} cannot be written: {error.strerror or error}", remedy)
    else:
        yield Finding("results", "ok", f"{project.results} can be written")


def _optional(project: Project | None) -> Iterator[Finding]:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    message = browser or "no Chromium; only the browser test of the site needs it"
    yield Finding("Chromium", "ok", message, "" if browser else "optional: install your system's package chromium")
    from packaging.requirements import Requirement

    lines = _declared().get("optional-dependencies", {}).get("teach", ["nbgrader"])
    for requirement in map(Requirement, lines):
        if not (problem := _unmet(requirement)):
            message = f"{metadata.version(requirement.name)}, for instructors: labs release"
            yield Finding(requirement.name, "ok", message)
        else:
            status: Status = "ok" if "missing" in problem else "warning"
            remedy = "optional, for instructors: " + INSTALL.replace("-e .", "-e '.[teach]'")
            yield Finding(requirement.name, status, problem, remedy)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _cores() -> int:
    """How many cores this process may use; a container may get a share of them only."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _control_group("cpu.max")  # microseconds of processor time in each period, and the period
    return max(1, min(cores, round(quota[0] / quota[1]))) if quota and len(quota) == 2 else cores


def _control_group(name: str) -> list[int] | None:
    """The numbers in a file of this process's control group (Linux); None where there is no limit."""
    try:
        return [int(word) for word in Path("/sys/fs/cgroup", name).read_text().split()]
    except (OSError, ValueError):  # no such file; "max"
        return None


CHECKS: dict[str, Callable[[Project | None], Iterator[Finding]]] = {
    "Python": _python,
    "packages": _packages,
    "labutils": _labutils,
    "kernel": _kernel,
    "notebooks": _notebooks,
    "data": _data,
    "torchvision": _torchvision,
    "processor": _processor,
    "memory": _memory,
    "disk": _disk,
    "results": _results,
    "GPU": _gpu,
    "optional": _optional,
}

if __name__ == "__main__":
    sys.exit(main(as_json="--json" in sys.argv[1:]))
