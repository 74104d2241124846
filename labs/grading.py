"""How nbgrader grades this lab: what the ``nbgrader_config.py`` of a release sets up in a course folder.

`Mend` puts a submission in order before it is graded, so that a copied, split, changed or deleted cell costs neither
its student nor those who come after. `Grade` runs what the exercises need and skips the lesson, in a kernel that has
the labutils of the release, an empty folder, and no access to the lab, the course folder or the home folder
(`labs.fence`). `Brief` and `Feedback` make pages without lesson and hidden tests, whose formulas need no network.
What an instructor should look at goes to ``notices.csv`` in the course folder.
"""

from __future__ import annotations

import ast
import compileall
import contextlib
import csv
import functools
import json
import os
import re
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import nbformat
import psutil
from jupyter_client.provisioning import LocalProvisioner
from jupyter_core.utils import ensure_async, run_sync
from nbclient.exceptions import DeadKernelError
from nbconvert.exporters import HTMLExporter
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor, Preprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader import preprocessors as steps
from nbgrader.api import Gradebook
from nbgrader.plugins import ExportPlugin
from nbgrader.preprocessors import NbGraderPreprocessor
from sqlalchemy.exc import SAWarning
from traitlets import Bool, Integer, Unicode
from traitlets.config import Config

import labs
from labs import submission
from labs.jupyter import Forge, Start, is_alive, thread_environment
from labs.site import mathjax_source

NOTICES = "notices.csv"
COLUMNS = ("student", "assignment", "notebook", "notice")
SECONDS_A_CELL = 60
# What a kernel gets of our environment: tokens and passwords are not among it.
KEPT = ("PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TERM", "LABUTILS_DATA", "MPLCONFIGDIR", "LD_LIBRARY_PATH")
CACHES = (".cache", ".config/matplotlib", ".matplotlib", ".ipython", ".jupyter", ".local/share/jupyter", ".local/lib")
MATHJAX = "tex-svg.js"
Resources = dict[str, Any]


def configure(config: Config, course: Path, release: Path) -> None:
    """Set up nbgrader.

    Args:
        config: what ``get_config()`` returns in ``nbgrader_config.py``.
        course: the course folder.
        release: the folder that ``labs release`` made.

    Raises:
        LabsError: it is no release.
    """
    submission.read_originals(release)
    warnings.filterwarnings("ignore", category=SAWarning)  # nbgrader's own use of its database
    config.CourseDirectory.root = str(course)
    config.Submission.course = str(course)
    config.Submission.release = str(release)
    config.Autograde.sanitize_preprocessors = [
        *(steps.ClearOutput, Mend, steps.OverwriteKernelspec, PutHiddenTests, steps.CheckCellMetadata)
    ]
    config.Autograde.autograde_preprocessors = [
        *(Grade, steps.LimitOutput, steps.SaveAutoGrades, steps.AssignLatePenalties, steps.CheckCellMetadata)
    ]
    config.GenerateFeedback.preprocessors = [steps.GetGrades, Brief, CSSHTMLHeaderPreprocessor]
    config.GenerateFeedback.exporter_class = Feedback


class Submission(NbGraderPreprocessor):
    """What the steps of grading know of a submission."""

    course = Unicode(help="the course folder").tag(config=True)
    release = Unicode(help="the folder that `labs release` made").tag(config=True)

    def notice(self, resources: Resources, *notices: str, anew: bool = False) -> None:
        """Tell the instructor something, in the log and in a table.

        Args:
            anew: whether what the table says of this submission is from an earlier grading.
        """
        about = [resources["nbgrader"][column] for column in COLUMNS[:-1]]
        path, rows = Path(self.course) / NOTICES, []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in list(csv.reader(file))[1:] if not anew or row[:-1] != about]
        rows += [[*about, notice] for notice in notices]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        for notice in notices:
            self.log.warning("%s, %s: %s", about[0], about[2], notice)


# --- Before grading -----------------------------------------------------------------------------------------------


class Mend(Submission):
    """Puts what a student handed in into the cells of the original, in place of nbgrader's DeduplicateIds."""

    def preprocess(self, nb: NotebookNode, resources: Resources) -> tuple[NotebookNode, Resources]:
        """Mend a notebook; each cell's metadata say under "labs" what it is."""
        original = self._original(resources)
        cells, notes = submission.rebuild(nb, original)
        lesson = submission.lesson_names(cells)
        if lesson:
            notes.append(f"an exercise uses {', '.join(lesson)} of the lesson, so all of it was run")
        touched = submission.touches(nb, original)
        self.notice(resources, *notes, *touched, anew=True)
        made = []
        for cell, origin in cells:
            skipped = "lesson" if origin in ("lesson", "changed") and not lesson else origin
            made.append(cell | {"metadata": cell["metadata"] | {"labs": skipped}})
        return nbformat.reads(json.dumps(original | {"cells": made}), as_version=4), resources

    def _original(self, resources: Resources) -> submission.Document:
        """The notebook that nbgrader has generated, as its database knows it; else that of the release."""
        name, assignment = (resources["nbgrader"][key] for key in ("notebook", "assignment"))
        generated = Path(self.course) / "release" / assignment / f"{name}.ipynb"
        if generated.is_file():
            return nbformat.read(generated, as_version=4)
        return submission.read_originals(Path(self.release))[name]


class PutHiddenTests(steps.OverwriteCells):
    """Gives the checks their hidden tests, as nbgrader does, which is no change that a student has made."""

    def report_change(self, name: str, attr: str, old: Any, new: Any) -> None:
        """Tell of anything else that is not as it was, of which `Mend` leaves nothing."""
        if attr != "checksum":
            super().report_change(name, attr, old, new)


# --- Grading ------------------------------------------------------------------------------------------------------


class Grade(Submission, steps.Execute):
    """Runs a notebook without its lesson, in a kernel that sees no more than it needs."""

    timeout = Integer(SECONDS_A_CELL, help="seconds that a cell may take", allow_none=True).tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: Resources, km: Any = None) -> tuple[NotebookNode, Resources]:
        """Execute the cells and keep their outputs."""
        self._dead, self._sealed, self._touched = False, False, dict[str, None]()
        with tempfile.TemporaryDirectory(prefix="labs-grading-", ignore_cleanup_errors=True) as folder:
            self._folder = Path(folder).resolve()
            nb, resources = super().preprocess(nb, resources, km)
        self.notice(resources, *self._touched)
        return nb, resources

    def start_new_kernel(self, **options: Any) -> None:
        """Start a kernel in an empty folder, with nothing of our environment but what it needs."""
        environment = kernel_environment(Path(self.release)) | {
            "LABUTILS_RUN_DIR": str(self._folder / "run"),
            "TMPDIR": str(self._folder),
        }
        if sys.platform == "linux":
            self.km.provisioner = Forked(
                kernel_id=str(uuid.uuid4()), kernel_spec=self.km.kernel_spec, parent=self.km, release=self.release
            )
        super().start_new_kernel(cwd=str(self._folder), env=environment, **options)

    def start_new_kernel_client(self, **options: Any) -> Any:
        """Put up the fence as soon as the kernel answers."""
        client = super().start_new_kernel_client(**options)
        self._ask(f"__import__('labs.fence', fromlist=['stand']).stand({self._roots()!r})")
        return client

    def _roots(self) -> dict[str, str]:
        """What the kernel may read and write; the nearest folder decides."""
        home = Path.home()
        roots = {"/": "r", str(home): "", self.course: "", **dict.fromkeys(map(str, _labs()), "")}
        roots |= {str(home / cache): "r" for cache in CACHES}
        if data := os.environ.get("LABUTILS_DATA"):
            roots[data] = "r"
        readable = (sys.prefix, sys.base_prefix, *(str(Path(psutil.__file__).parents[1]),), self.release)
        return roots | dict.fromkeys(readable, "r") | {"/dev": "rw", str(self._folder): "rw"}

    def preprocess_cell(self, cell: NotebookNode, resources: Resources, index: int) -> tuple[NotebookNode, Resources]:
        """Execute a cell, if it is not of the lesson."""
        if cell.cell_type != "code" or cell.metadata.get("labs") == "lesson":
            return cell, resources
        if not self._dead:
            try:
                cell, resources = super().preprocess_cell(cell, resources, index)
                self._look_around(cell)
            except DeadKernelError:
                self._dead = True
                self._touched["the kernel died: out of memory, or ended by the notebook's own code"] = None
        grade = submission.mark(cell).get("grade")
        if self._dead and grade:
            cell.outputs = [_failure("DeadKernelError", "The kernel died in this cell or in an earlier one.")]
        for output in cell.outputs:
            if grade and output.output_type == "stream":
                output.name = "stdout"  # nbgrader takes a warning on standard error for a failure
        if cell.metadata.get("labs") in ("added", "changed"):  # may need a lesson that has not run
            cell.outputs = [one for one in cell.outputs if one.get("ename") != "NameError"]
        return cell, resources

    def _look_around(self, cell: NotebookNode) -> None:
        """Put back what this cell has replaced in the libraries, and remember it."""
        if self._sealed:
            found = self._ask("", "__import__('labs.fence').fence.SEAL.mend(globals())")
            names = ast.literal_eval(found) if found.startswith("[") else ["what notices it"]
            where = submission.mark(cell).get("grade_id") or "an added cell"
            self._touched |= dict.fromkeys(f"replaced while it ran: {name} ({where})" for name in names)
            if names and submission.mark(cell).get("grade"):
                cell.outputs.append(_failure("TrickError", f"{', '.join(names)} was replaced while this check ran."))
        elif submission.needed(cell) == submission.SET_UP:
            self._ask("__import__('labs.fence').fence.SEAL = __import__('labs.fence').fence.Seal()")
            self._sealed = True

    def _ask(self, code: str, expression: str = "None") -> str:
        """Run code that leaves no trace; return the value of an expression, as text."""
        return run_sync(self._async_ask)(code, expression)

    async def _async_ask(self, code: str, expression: str) -> str:
        asked = {"value": expression}
        sent = await ensure_async(self.kc.execute(code, silent=True, store_history=False, user_expressions=asked))
        while True:
            try:
                message = await ensure_async(self.kc.get_shell_msg(timeout=SECONDS_A_CELL))
            except Exception:
                raise DeadKernelError("no answer") from None
            if message["parent_header"].get("msg_id") == sent:
                found = message["content"].get("user_expressions", {}).get("value", {})
                return found.get("data", {}).get("text/plain", "")


def _failure(name: str, text: str) -> NotebookNode:
    return new_output("error", ename=name, evalue=text, traceback=[text])


def _labs() -> Iterator[Path]:
    """Where labs with solutions are: the one that runs this, and the one that is installed."""
    yield Path(labs.__file__).resolve().parents[1]
    with contextlib.suppress(metadata.PackageNotFoundError, TypeError, ValueError, KeyError):
        url = json.loads(metadata.distribution("labutils").read_text("direct_url.json") or "{}")["url"]
        yield Path(url2pathname(urlsplit(url).path))


def kernel_environment(release: Path) -> dict[str, str]:
    """The environment of a kernel that grades: with the labutils of the release, and without secrets."""
    kept = {name: os.environ[name] for name in os.environ if name in KEPT or name.startswith("LC_")}
    return {
        **kept,
        **thread_environment(1),
        "PYTHONPATH": str(release),
        "TQDM_DISABLE": "1",
        "NBGRADER_EXECUTION": "autograde",
    }


@functools.cache
def forge(release: str) -> Forge:
    """The forge for a release, which ends with this process."""
    compileall.compile_dir(release, quiet=2, maxlevels=1)  # kernels may not write there
    return Forge(kernel_environment(Path(release)), Path(release))


class Forked(LocalProvisioner):
    """A kernel that a forge has forked, as Jupyter knows kernels."""

    release = Unicode()

    async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
        """Fork it, in place of starting the command."""
        self.cwd = options["cwd"]
        start = Start(dict(options["env"]), Path(self.cwd), Path(self.cwd, "log.txt"))
        self.pid = self.pgid = forge(self.release).fork(self.parent.connection_file, start).pid
        self.process = _Process(self.pid)
        return self.connection_info


class _Process(psutil.Process):
    """A process that is not our child, with the methods of Popen that Jupyter uses."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return None if is_alive(self) else 0

    def wait(self, timeout: float | None = None) -> int:
        return 0


# --- After grading ------------------------------------------------------------------------------------------------


class Brief(Preprocessor):
    """Leaves in a feedback what belongs to the exercises, without hidden tests."""

    enabled = Bool(True)

    def preprocess(self, nb: NotebookNode, resources: Resources) -> tuple[NotebookNode, Resources]:
        """Shorten a graded notebook."""
        hidden = {line for cell in nb.cells for line in _hidden(cell.source)}
        begins = [re.search(r"(?m)^## Exercise", cell.source) is not None for cell in nb.cells]
        start = begins.index(True) if True in begins else 0
        nb.cells = [
            cell
            for at, cell in enumerate(nb.cells)
            if cell.metadata.get("labs") != "lesson" or (cell.cell_type == "markdown" and at >= start)
        ]
        for cell in nb.cells:
            cell.source = re.sub(
                r"(?ms)^([ \t]*)### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS[^\n]*",
                r"\1# hidden tests",
                cell.source,
            )
            for output in cell.get("outputs", ()):
                _hide(output, hidden)
        return nb, resources


def _hidden(text: str) -> Iterator[str]:
    for region in re.findall(r"(?s)### BEGIN HIDDEN TESTS(.*?)### END HIDDEN TESTS", text):
        yield from (line.strip() for line in region.splitlines() if len(line.strip()) > 8)


def _hide(output: NotebookNode, hidden: set[str]) -> None:
    """Take the lines of hidden tests out of what a cell has printed, tracebacks among it."""

    def without(text: str) -> str:
        lines = text.split("\n")
        return "\n".join(
            line for line in lines if not any(one in re.sub(r"\x1b\[[0-9;]*m", "", line) for one in hidden)
        )

    match output.output_type:
        case "stream":
            output.text = without(output.text)
        case "error":
            output.traceback = [without(part) for part in output.traceback]
        case _:
            for kind, text in output.data.items():
                if isinstance(text, str) and kind.startswith("text/"):
                    output.data[kind] = without(text)


class Feedback(HTMLExporter):
    """A page whose formulas are set by a file beside it; where that was not handed out with it, by one on the web."""

    def from_notebook_node(self, nb: NotebookNode, resources: Any = None, **options: Any) -> tuple[str, Any]:
        """Make the page."""
        page, resources = super().from_notebook_node(nb, resources, **options)
        source = mathjax_source()
        if source:
            resources.setdefault("outputs", {})[MATHJAX] = (source / MATHJAX).read_bytes()
            page = re.sub(
                r"(?s)<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", lambda _: _FORMULAS, page
            )
        return page, resources


_FORMULAS = rf"""<script>
MathJax = {{tex: {{inlineMath: [["$", "$"], ["\\(", "\\)"]], processEscapes: true}}}};
function elsewhere() {{
  const script = document.createElement("script");
  script.src = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/{MATHJAX}";
  document.head.append(script);
}}
</script>
<script defer src="{MATHJAX}" onerror="elsewhere()"></script>"""


class Grades(ExportPlugin):
    """The points of each exercise as a table: ``nbgrader export --exporter labs.grading.Grades --to grades.csv``."""

    def export(self, gradebook: Gradebook) -> None:
        """Write the table: a row for each student and check that was handed in."""
        columns = ("assignment", "student", "notebook", "check", "points", "of", "needs a look", "comment")
        with Path(self.to or "grades.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(columns)
            for assignment in gradebook.assignments:
                for submission in gradebook.assignment_submissions(assignment.name):
                    for notebook in submission.notebooks:
                        comments = {comment.name: comment.comment or "" for comment in notebook.comments}
                        for grade in notebook.grades:
                            about = (assignment.name, submission.student.id, notebook.name, grade.name)
                            look = "yes" if grade.needs_manual_grade else ""
                            comment = comments.get(grade.name, "")
                            table.writerow([*about, grade.score, grade.max_score, look, comment])
