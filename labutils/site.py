"""Builds the book: executed notebooks, the claims page and the reference pages, set by Jupyter Book.

The folder of the book holds what Jupyter Book reads and, under ``_build/html``, the site. It is made from nothing
each time something changed, beside its place, and takes its place when it is complete.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import metadata
from math import inf
from pathlib import Path
from typing import Any

import filelock
import nbformat
import yaml

from labutils import runner
from labutils.runner import LabsError, Notebook, Project

INDEX = Path("_build") / "html" / "index.html"
STAMP = "stamp.txt"
PUBLISHED = "results"
MOST_LINES_TOLD = 60
VERDICTS = {"supported": "success", "not supported": "danger", "inconclusive": "secondary"}
# MathJax out of this package makes formulas work without internet; without it the pages load MathJax from the web.
MATHJAX_PACKAGE = "sphinx-mathjax-offline"
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")


class BookError(Exception):
    """Jupyter Book found something to complain about."""


def build(project: Project, results: Path, out: Path) -> Path:
    """Build the site from ``book/`` and the executed quick runs; where nothing changed, leave it as it is.

    Args:
        project: the lab.
        results: the folder of the results; every quick run there must be done.
        out: the folder of the book, replaced as a whole.

    Returns:
        The first page of the site.

    Raises:
        LabsError: a notebook's quick run is not up to date.
        BookError: Jupyter Book warned or failed; what it said is in the message.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out.with_name(f".{out.name}.lock")):
        pages = _collect(project, results)
        stamp = _stamp(project, pages)
        if (out / INDEX).is_file() and (out / STAMP).is_file() and (out / STAMP).read_text() == stamp:
            return out / INDEX
        remove(out)
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for name, content in pages.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            _run_jupyter_book(partial)
            _add_mathjax(partial / INDEX.parent / "_static" / "mathjax")
            (partial / STAMP).write_text(stamp)
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out / INDEX


def remove(out: Path) -> None:
    """Remove a book, so that nobody takes it for the present one."""
    shutil.rmtree(out, ignore_errors=True)


def _collect(project: Project, results: Path) -> dict[str, bytes]:
    """Every file that Jupyter Book is to read: path below the book's folder to content."""
    book = project.root / "book"
    if not (book / "_toc.yml").is_file():
        raise LabsError(f"{book} has no _toc.yml")
    pages = {
        path.relative_to(book).as_posix(): path.read_bytes()
        for path in sorted(book.rglob("*"))
        if path.is_file() and path.relative_to(book).parts[0] not in (PUBLISHED, "_build")
    }
    notebooks = runner.load_notebooks(project)
    quick = {}
    for run in runner.select(notebooks):
        status = runner.status(project, run, results)
        if status.state != "done":
            changed = f" ({', '.join(status.changed)} changed)" if status.changed else ""
            raise LabsError(f"{run.label} is {status.state}{changed}: run it before the book is built")
        folder = run.folder(results)
        pages[f"notebooks/{run.notebook.name}.ipynb"] = _page_of(folder / "notebook.ipynb")
        quick[run.notebook.name] = _metrics(folder)
    texts = {"claims.md": claims_page(notebooks, quick, published(book / PUBLISHED))}
    texts |= reference_pages(project.package)
    pages |= {name: text.encode() for name, text in texts.items()}
    if mathjax_source() and "_config.yml" in pages:
        config = yaml.safe_load(pages["_config.yml"]) or {}
        sphinx = config.setdefault("sphinx", {})
        sphinx["config"] = (sphinx.get("config") or {}) | {"mathjax_path": f"mathjax/{MATHJAX_PARTS[0]}"}
        pages["_config.yml"] = yaml.safe_dump(config, sort_keys=False).encode()
    return pages


def _stamp(project: Project, pages: Mapping[str, bytes]) -> str:
    """What the site depends on: the pages, the code whose docstrings it shows, and the tools."""
    tools = [metadata.version(name) for name in ("jupyter-book", "sphinx", "sphinx-book-theme", "myst-nb")]
    parts = {name: hashlib.sha256(content).hexdigest() for name, content in pages.items()}
    code = runner.hash_code(project.package, leave_out=())
    return hashlib.sha256(json.dumps([tools, code, parts], sort_keys=True).encode()).hexdigest()


def _page_of(path: Path) -> bytes:
    """An executed notebook without papermill's times and paths, which say nothing to a reader."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    return nbformat.writes(notebook).encode()


def _metrics(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _run_jupyter_book(folder: Path) -> None:
    script = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-P", "-c", script, "build", "--warningiserror", "--keep-going", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode == 0 and (folder / INDEX).is_file():
        return
    # Sphinx writes warnings, and nothing else, to standard error
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", done.stderr if "WARNING" in done.stderr else done.stdout).splitlines()
    told = dict.fromkeys(line.replace(f"{folder}/", "").rstrip() for line in lines[-MOST_LINES_TOLD:] if line.strip())
    raise BookError("the book was not built:\n" + "\n".join(f"    {line}" for line in told))


def mathjax_source() -> Path | None:
    """The folder of the MathJax that is installed beside us; None where there is none."""
    spec = importlib.util.find_spec(MATHJAX_PACKAGE)
    return Path(spec.origin).parent / "static" / "mathjax" if spec and spec.origin else None


def _add_mathjax(target: Path) -> None:
    """Put the part of MathJax that the pages load (3 of its 24 MB) beside them."""
    source = mathjax_source()
    if source is None:
        return
    target.mkdir(parents=True)
    for part in MATHJAX_PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part)
        else:
            shutil.copy(source / part, target / part)


# --- The claims page ---------------------------------------------------------------------------------------------


def published(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The recorded source runs that come with the book: notebook to run to what its metrics.json holds.

    Args:
        folder: holds ``<notebook>/<run>/metrics.json``; it may be missing.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*/metrics.json")):
        found.setdefault(path.parts[-3], {})[path.parts[-2]] = _metrics(path.parent)
    return found


def claims_page(
    notebooks: Mapping[str, Notebook],
    quick: Mapping[str, Mapping[str, Any]],
    source_runs: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> str:
    """All claims as one page: what the sources say, what the runs show.

    Args:
        notebooks: name to notebook, for the titles.
        quick: notebook's name to the metrics.json of its quick run.
        source_runs: what ``published`` returned.

    Returns:
        A page in MyST Markdown: the counts, then one table for each source document.
    """
    rows: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for name in notebooks:
        runs = {runner.QUICK: quick.get(name, {})} | dict(source_runs.get(name, {}))
        for run, metrics in runs.items():
            for claim in metrics.get("claims", []):
                rows.setdefault((_document(claim["source"]), name, claim["text"]), {})[run] = claim
    documents = sorted({document for document, _, _ in rows})
    counts = Counter((key[0], runs[runner.QUICK]["verdict"]) for key, runs in rows.items() if runner.QUICK in runs)
    lines = [
        "# What the sources claim, what our runs show",
        "",
        "Each claim is a statement of a source document, tested on the numbers of a notebook. A verdict is computed "
        "from repeated seeds, never written by hand: *supported* where the whole 95 % interval lies on the claim's "
        "side, *not supported* where it lies on the other, *inconclusive* in between or with too few seeds. "
        "The quick run uses small embedded data; a source run uses the source's own settings and data.",
        "",
    ]
    if not rows:
        return "\n".join([*lines, "No notebook has tested a claim yet.", ""])
    table = [["Source", *VERDICTS, "Claims"]]
    for document in documents:
        numbers = [counts[document, verdict] for verdict in VERDICTS]
        table.append([document, *map(str, numbers), str(sum(numbers))])
    if len(documents) > 1:
        sums = [sum(counts[document, verdict] for document in documents) for verdict in VERDICTS]
        table.append(["**All**", *map(str, sums), str(sum(sums))])
    lines += ["## Verdicts of the quick runs", "", *_list_table(table)]
    for document in documents:
        table = [["Claim", "Quick run", "Source runs"]]
        for (_, name, text), runs in ((key, runs) for key, runs in rows.items() if key[0] == document):
            claim = next(iter(runs.values()))
            where = f"{claim['source']} · [{notebooks[name].title}](notebooks/{name}.ipynb)"
            others = [f"`{run}`: {_outcome(found)}" for run, found in runs.items() if run != runner.QUICK]
            first = _outcome(runs[runner.QUICK]) if runner.QUICK in runs else "not tested"
            table.append([f"{text}<br>*{where}*", first, "<br>".join(others) or "not recorded"])
        lines += [f"## {document}", "", *_list_table(table, widths="46 27 27")]
    return "\n".join(lines)


def _document(source: str) -> str:
    """The document of a source: "D2 1-1" belongs to "D2"; what names no document stands for itself."""
    match = re.match(r"D\d+\b", source.strip())
    return match.group() if match else source.strip()


def _outcome(claim: Mapping[str, Any]) -> str:
    """Verdict, effect, interval and evidence of one claim, as MyST Markdown."""
    from labutils.statistics import Interval  # brings scipy, which the other commands need not wait for

    verdict = claim["verdict"]
    numbers = dict(claim["interval"])
    for end, limit in (("low", -inf), ("high", inf)):  # JSON has null for the interval of a single seed
        numbers[end] = limit if numbers[end] is None else numbers[end]
    interval = Interval(**numbers)
    evidence = f": {claim['evidence']}" if claim["evidence"] else ""
    return f"{{bdg-{VERDICTS[verdict]}}}`{verdict}`<br>{claim['measure']} {interval}{evidence}"


def _list_table(rows: Iterable[list[str]], widths: str = "auto") -> list[str]:
    lines = ["```{list-table}", ":header-rows: 1", f":widths: {widths}", ""]
    for row in rows:
        for index, cell in enumerate(row):
            lines.append(("* - " if index == 0 else "  - ") + " ".join(cell.split()))
    return [*lines, "```", ""]


# --- The reference pages -----------------------------------------------------------------------------------------


def reference_pages(package: Path) -> dict[str, str]:
    """One page for each module of the package, from its docstrings, and one that lists them.

    Args:
        package: the folder of the package.

    Returns:
        Path below the book's folder to MyST Markdown.
    """
    name = package.name
    pages, rows = {}, [["Module", "What it holds"]]
    for path in sorted(package.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        module = f"{name}.{path.stem}"
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        rows.append([f"[{module}]({module}.md)", summary.replace("``", "`")])
        directive = f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n   :member-order: bysource\n```\n"
        pages[f"reference/{module}.md"] = f"# {module}\n\n{directive}"
    text = "What the notebooks share. These pages are made from the docstrings."
    pages["reference/index.md"] = "\n".join(["# The module labutils", "", text, "", *_list_table(rows, widths="25 75")])
    return pages
