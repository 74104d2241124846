"""Builds the book: executed notebooks and the pages of `labs.pages`, set by Jupyter Book.

The folder of the book holds what Jupyter Book reads and, under ``_build/html``, the site. It is made anew when
something
changed, beside its place, and takes its place when it is complete.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import nbformat
import yaml
from nbformat import NotebookNode

from labs import freshness, pages, runner, teaching
from labs.runner import LabsError, Notebook, Project

INDEX = Path("_build") / "html" / "index.html"
STAMP = "stamp.txt"
PDF = "book.pdf"
PRINTING = 120  # seconds that the formulas of the whole book may take
PUBLISHED = "results"
MOST_LINES_TOLD = 60
BENCHMARKS = "benchmarks"
REPORTED = "reported.yaml"
SOURCE_PAGES = "sphinx.ext.viewcode"
SHOW_SOURCE_RUNS = "run.source_runs()"  # a cell that shows what is published
LONG = 20  # lines of code; a longer cell is folded
# MathJax out of this package makes formulas work without internet; without it the pages load MathJax from the web.
MATHJAX_PACKAGE = "sphinx-mathjax-offline"
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions", "ui/safe.js")
MATHJAX_ON_THE_WEB = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml.js"
SLIDES = "slides"  # a folder of the site that Sphinx does not read
BINDER = "https://mybinder.org"
COLAB = "https://colab.research.google.com"
# Jupyter Book's command line has no option for this: several processes read and write pages.
JUPYTER_BOOK = """
import labs
from functools import partial
import jupyter_book.sphinx as book
from jupyter_book.cli.main import main
book.build_sphinx = partial(book.build_sphinx, jobs={jobs})
main()
"""


class BookError(Exception):
    """Jupyter Book found something to complain about."""


def build(project: Project, results: Path, out: Path, *, answers: bool = True, pdf: bool = False) -> Path:
    """Build the site from ``book/`` and the executed quick runs; where nothing changed, leave it as it is.

    Args:
        results: the folder of the results; every quick run there must be done.
        out: the folder of the book, replaced as a whole.
        answers: whether pages show the solutions of exercises, hidden tests and the module's source code.
        pdf: whether to make ``book.pdf``, too.

    Returns:
        The first page of the site.

    Raises:
        LabsError: a notebook's quick run is not up to date, book/reported.yaml names what no run holds, or there is no
            browser to make a PDF.
        BookError: Jupyter Book warned or failed; what it said is in the message.
    """
    browser = find_browser() if pdf else ""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out.with_name(f".{out.name}.lock")):
        files = collect(project, results, answers)
        stamp = _stamp(project, files)
        made = [out / name for name in (INDEX, STAMP, *([PDF] if pdf else []))]
        if all(path.is_file() for path in made) and (out / STAMP).read_text() == stamp:
            return out / INDEX
        remove(out)
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for name, content in files.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            _run_jupyter_book(partial)
            if (partial / SLIDES).is_dir():
                shutil.copytree(partial / SLIDES, partial / INDEX.parent / SLIDES)
            _add_mathjax(partial / INDEX.parent)
            if pdf:
                _print(partial, browser)
            (partial / STAMP).write_text(stamp)
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out / INDEX


def remove(out: Path) -> None:
    """Remove a book, so that nobody takes it for the present one."""
    shutil.rmtree(out, ignore_errors=True)


def collect(project: Project, results: Path, answers: bool = True) -> dict[str, bytes]:
    """Return every file that Jupyter Book is to read: path below the book's folder to content. Else as `build`."""
    book = project.root / "book"
    if not (book / "_toc.yml").is_file():
        raise LabsError(f"{book} has no _toc.yml")
    files = {
        path.relative_to(book).as_posix(): path.read_bytes()
        for path in sorted(book.rglob("*"))
        if path.is_file() and not {PUBLISHED, "_build", "__pycache__"} & set(path.relative_to(book).parts)
    }
    notebooks = runner.load_notebooks(project)
    quick = {}
    for run in runner.select(notebooks):
        status = freshness.status(project, run, results)
        if status.state != "done":
            changed = f" ({', '.join(status.changed)} changed)" if status.changed else ""
            raise LabsError(f"{run.label} is {status.state}{changed}: run it before the book is built")
        folder = run.folder(results)
        now = with_outputs(run.notebook, folder / "notebook.ipynb", project.root)
        files[f"notebooks/{run.notebook.name}.ipynb"] = notebook_page(now, run.notebook.name, answers)
        quick[run.notebook.name] = pages.read(folder / "metrics.json")
    runs = pages.source_runs(project.root, notebooks)
    texts = {
        "claims.md": pages.claims_page(notebooks, quick, runs),
        "claims.csv": pages.claims_csv(pages.claim_rows(notebooks, quick, runs)),
    }
    if REPORTED in files:
        texts["results.md"] = pages.results_page(yaml.safe_load(files.pop(REPORTED)), runs)
    if f"{BENCHMARKS}.md" in files:
        texts[f"{BENCHMARKS}_table.md"] = pages.benchmarks_table(pages.read(book / PUBLISHED / f"{BENCHMARKS}.json"))
    texts |= pages.reference_pages(project.package, project.root / "labs")
    if "instructor.md" in files:
        texts |= _teaching(project, notebooks, quick, files, answers)
    files |= {name: text.encode() for name, text in texts.items()}
    if "_config.yml" in files:
        files["_config.yml"] = settings(files["_config.yml"], answers)
    return files


def _teaching(
    project: Project,
    notebooks: Mapping[str, Notebook],
    quick: Mapping[str, pages.Metrics],
    files: Mapping[str, bytes],
    answers: bool,
) -> dict[str, str]:
    """Paths, rubric and slides, which the pages for teachers include and link to."""
    path, graded = teaching.lessons(notebooks), teaching.exercises(notebooks.values(), hidden=answers)
    texts = {"paths_map.md": teaching.path_map(path), "paths_table.md": teaching.path_table(path)}
    texts |= {"rubric.md": teaching.rubric_page(graded), "rubric.csv": teaching.rubric_csv(graded)}
    mathjax = f"../_static/mathjax/{MATHJAX_PARTS[0]}" if mathjax_source() else MATHJAX_ON_THE_WEB
    for part in sorted({lesson.number[0] for lesson in path}):
        chosen = [lesson for lesson in path if lesson.number[0] == part]
        shown = {one.name: nbformat.reads(files[f"notebooks/{one.name}.ipynb"], as_version=4) for one in chosen}
        title = files[f"part{part}.md"].decode().partition("\n")[0].lstrip("# ")
        made = teaching.slides(title, shown, quick)
        template = project.root / "book" / "_templates" / "slides.html.j2"
        texts[f"part{part}_path.md"] = teaching.path_table(chosen)
        texts[f"{SLIDES}/part{part}.ipynb"] = nbformat.writes(made)
        texts[f"{SLIDES}/part{part}.html"] = teaching.slides_page(made, template, mathjax)
    return texts


def settings(text: bytes, answers: bool = True) -> bytes:
    """Return Jupyter Book's settings, with those added that depend on what is installed and where the lab is published.

    Raises:
        LabsError: the address of the repository is none.
    """
    config = yaml.safe_load(text) or {}
    sphinx = config.setdefault("sphinx", {}).setdefault("config", {})
    if mathjax_source():
        sphinx["mathjax_path"] = f"mathjax/{MATHJAX_PARTS[0]}"
        # Formulas come from notebooks and the records of runs, too: they must not bring scripts along.
        sphinx["mathjax3_config"] = {"loader": {"load": ["ui/safe"]}}
    if not answers and SOURCE_PAGES in (extensions := sphinx.get("extensions", [])):
        extensions.remove(SOURCE_PAGES)
    repository = config.pop("repository", None) or {}
    url = str(repository.get("url") or "").strip().rstrip("/").removesuffix(".git")
    if url:
        if not re.fullmatch(r"https://[^/\s]+/[^/\s]+/[^/\s]+", url):
            raise LabsError(
                f"book/_config.yml: repository.url is {url!r}; write it as https://github.com/NAME/REPOSITORY, "
                "or leave it empty for a book without launch buttons"
            )
        # The page notebooks/NAME of the book shows notebooks/NAME.ipynb of the repository: the same path in both.
        config["repository"] = {"url": url, "branch": repository.get("branch") or "main", "path_to_book": ""}
        launch = {"notebook_interface": "jupyterlab", "binderhub_url": BINDER, "thebe": False}
        config["launch_buttons"] = launch | ({"colab_url": COLAB} if url.startswith("https://github.com/") else {})
    return yaml.safe_dump(config, sort_keys=False).encode()


def _stamp(project: Project, files: Mapping[str, bytes]) -> str:
    """What the site depends on: the pages, the code whose docstrings it shows, and the tools."""
    tools = [metadata.version(name) for name in ("jupyter-book", "sphinx", "sphinx-book-theme", "myst-nb")]
    parts = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    parts |= {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in project.package.glob("*.py")}
    return hashlib.sha256(json.dumps([tools, parts], sort_keys=True).encode()).hexdigest()


def with_outputs(notebook: Notebook, executed: Path, root: Path) -> NotebookNode:
    """Return a notebook with the texts that it has now, the outputs of its run, and the source runs published now.

    Texts and published runs outdate no result, and may be newer than it.
    """
    from labutils import published

    now, run = (nbformat.read(path, as_version=4) for path in (notebook.path, executed))
    code = [cell for cell in run.cells if cell.cell_type == "code"]
    now.metadata = run.metadata  # the kernel says how code is colored
    known = {cell.source: cell for cell in code} | {cell.id: cell for cell in code}
    shown = published.SourceRuns.of(root, notebook.name)
    for cell in now.cells:
        if cell.cell_type == "code" and (made := known.get(cell.id) or known.get(cell.source)):
            cell.update(outputs=made.outputs, execution_count=made.execution_count)
            if cell.source == SHOW_SOURCE_RUNS:
                for output in cell.outputs:
                    output["data"] = {"text/html": shown._repr_html_(), "text/plain": repr(shown)}
    return now


def notebook_page(notebook: NotebookNode, name: str, answers: bool = True) -> bytes:
    """Return an executed notebook as the site shows it: figures numbered, answers and long code folded."""
    if not answers:
        from labs import release

        notebook = release.cut(notebook, name, release.ANSWERS)
    notebook.metadata.pop("papermill", None)  # its times and paths say nothing to a reader
    figures = 0
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        if folded := _folded(cell):
            cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), "hide-input"})
            cell.metadata["mystnb"] = {"code_prompt_show": f"Show {folded}", "code_prompt_hide": f"Hide {folded}"}
        for output in cell.outputs:
            data = output.get("data", {})
            told = re.search(r"\bFigure [\w-]+: (.+)", str(data.get("text/plain", "")), flags=re.DOTALL)
            if told and "<img" in data.get("text/html", ""):
                figures += 1
                number = f"{name.partition('_')[0]}.{figures}"
                # a screen reader has the text already, as that of the picture
                caption = f'<figcaption aria-hidden="true"><b>Figure {number}</b> {html.escape(told[1])}</figcaption>'
                figure = f'<figure class="numbered" id="figure-{number.replace(".", "-")}">'
                data["text/html"] = f"{figure}{data['text/html']}{caption}</figure>"
    return nbformat.writes(notebook).encode()


def _folded(cell: Any) -> str:
    """What to call a cell's code that is shown on a click only; empty for the code that one reads."""
    exercise, tags = cell.metadata.get("nbgrader", {}), cell.metadata.get("tags", [])
    lines = len(cell.source.splitlines())
    if exercise.get("solution"):
        return "a solution" if "BEGIN SOLUTION" in cell.source else ""
    if exercise.get("grade"):
        return "the check"
    if "parameters" in tags:
        return ""
    if cell.source.startswith(("import ", "from ", "%matplotlib")):
        return "the set-up"
    if "run.figure(" in cell.source and ("hide-input" in tags or lines > LONG / 2):
        return f"the code of the figure ({lines} lines)"
    return f"{lines} lines of code" if "hide-input" in tags or lines > LONG else ""


def _run_jupyter_book(folder: Path, builder: str = "html") -> None:
    options = ["--warningiserror", "--keep-going", "--builder", builder]
    script = JUPYTER_BOOK.format(jobs=min(runner.count_cores(), 4))
    command = [sys.executable, "-P", "-c", script, "build", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode == 0 and (folder / INDEX).is_file():
        return
    # Sphinx writes warnings, and nothing else, to standard error
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", done.stderr if "WARNING" in done.stderr else done.stdout).splitlines()
    told = dict.fromkeys(line.replace(f"{folder}/", "").rstrip() for line in lines[-MOST_LINES_TOLD:] if line.strip())
    raise BookError("the book was not built:\n" + "\n".join(f"    {line}" for line in told))


def mathjax_source() -> Path | None:
    """Return the folder of the MathJax that is installed beside us; None where there is none."""
    spec = importlib.util.find_spec(MATHJAX_PACKAGE)
    return Path(spec.origin).parent / "static" / "mathjax" if spec and spec.origin else None


def _add_mathjax(pages: Path) -> None:
    """Put the part of MathJax that the pages load (3 of its 24 MB) beside them."""
    source, target = mathjax_source(), pages / "_static" / "mathjax"
    if source is None:
        return
    for part in MATHJAX_PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part)
        else:
            shutil.copy(source / part, target / part)


def find_browser() -> str:
    """Return the program that prints a PDF: the one that $CHROMIUM names, or a Chromium or Chrome that is installed.

    Raises:
        LabsError: there is none.
    """
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    found = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if found is None:
        raise LabsError("Chromium or Chrome prints the PDF, and is not here: install one, or name it in CHROMIUM")
    return found


def _print(folder: Path, browser: str) -> None:
    """Set the whole book as one page, and let the browser print it: ``book.pdf`` in the folder."""
    _run_jupyter_book(folder, "singlehtml")
    pages = folder / "_build" / "singlehtml"
    _add_mathjax(pages)
    [page] = [path for path in pages.glob("*.html") if path.name != INDEX.name]  # the other one leads to it
    options = ["--headless", "--disable-gpu", "--no-pdf-header-footer", "--generate-pdf-document-outline"]
    options += [f"--virtual-time-budget={PRINTING * 1000}", f"--print-to-pdf={folder / PDF}"]
    options += ["--no-sandbox"] * (os.geteuid() == 0)  # which root cannot have
    done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, check=False)
    if done.returncode or not (folder / PDF).is_file():
        raise BookError(f"{browser} printed no PDF:\n    " + "\n    ".join(done.stderr.splitlines()[-5:]))
    shutil.rmtree(pages)
