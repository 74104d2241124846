"""What the tests share: small labs made on the spot, and the real lab's executed notebooks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import nbformat
import numpy as np
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from xdist.scheduler import LoadScopeScheduling

from labs import freshness, runner, site
from labs.jupyter import Forge
from labs.runner import Notebook, Project, Result, Run

# Before any test imports torch: they run side by side, one thread each, and open no window.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background is begun without it

hypothesis.settings.register_profile("lab", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("lab")

ROOT = Path(__file__).resolve().parents[1]
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """With `pytest -n 2`, a file stays in one process, as its tests share what is slow; notebooks go one by one."""

    class ByFileOrNotebook(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file.endswith("test_notebooks.py") else file

    config.option.loadscopereorder = False  # the site comes after the notebooks that it shows
    return ByFileOrNotebook(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks first, and then the browser, which takes longest and opens the site that shows them."""
    first = ["test_notebooks.py", "test_browser.py"]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture(autouse=True)
def afresh() -> None:
    """Every test begins with the same random numbers and no figure open, whichever ran before it."""
    np.random.seed(0)  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@dataclass(frozen=True)
class TinyLab:
    """A lab in a temporary folder, with a package of its own, so that no change of labutils matters to it."""

    root: Path

    @property
    def project(self) -> Project:
        return Project(self.root, package=self.root / "package" / "labutils")

    @property
    def results(self) -> Path:
        return self.project.results

    def add(self, name: str, *sources: str, defaults: str = "n = 3  # how many", text: str = "") -> Path:
        """Write a notebook: a heading, the parameters cell, then the sources as code cells."""
        cells = [
            new_markdown_cell(text or f"# Title of {name}\n\nDoes *{name}* work? It should."),
            new_code_cell(defaults, metadata={"tags": ["parameters"]}),
            *(new_code_cell(source) for source in sources),
        ]
        path = self.project.notebooks / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)
        return path

    def name_runs(self, runs: dict[str, Any]) -> None:
        (self.project.notebooks / "runs.yaml").write_text(yaml.safe_dump(runs, sort_keys=False), encoding="utf-8")

    def load(self) -> dict[str, Notebook]:
        return runner.load_notebooks(self.project)

    def run(self, name: str) -> Run:
        """The run that a label (notebook:run) means."""
        return runner.select(self.load(), [name])[0]

    def state(self, name: str) -> freshness.Status:
        return freshness.status(self.project, self.run(name), self.results)


def make_tiny_lab(root: Path) -> TinyLab:
    lab = TinyLab(root)
    lab.project.notebooks.mkdir(parents=True)
    lab.project.package.mkdir(parents=True)
    (lab.project.package / "models.py").write_text('"""Networks."""\n')
    (lab.project.package / "cli.py").write_text('"""The command."""\n')
    lab.name_runs({})
    return lab


def wait_until(condition: Callable[[], object], seconds: float = 200) -> None:
    """Wait until something holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def tiny_lab(tmp_path: Path) -> TinyLab:
    return make_tiny_lab(tmp_path / "lab")


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the whole test session; the workers of pytest-xdist have it in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def results(session_folder: Path) -> Path:
    """Where the real notebooks' results go."""
    return session_folder / "results"


@pytest.fixture(scope="session")
def execute_notebook(results: Path) -> Iterator[Callable[[str], Result]]:
    """Execute the quick run of a real notebook, once a session: whoever comes later finds it fresh."""
    project = Project(ROOT)
    with contextlib.ExitStack() as stack:
        forge = stack.enter_context(contextlib.closing(Forge(os.environ))) if sys.platform == "linux" else None
        here = runner.Here(project.notebooks, jobs=1, threads=1, forge=forge)

        def execute(name: str) -> Result:
            runs = runner.select(runner.load_notebooks(project), [name])
            return runner.run_until_interrupted(runner.execute_at(here, project, runs, results))[0]

        yield execute


@pytest.fixture(scope="session")
def built_book(execute_notebook: Callable[[str], Result], results: Path, session_folder: Path) -> Path:
    """The folder of the real book's pages, built once a session from the executed notebooks."""
    project = Project(ROOT)
    for name in runner.load_notebooks(project):
        assert execute_notebook(name).failure is None
    return site.build(project, results, session_folder / "book").parent
