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

from labs import freshness, runner
from labs.runner import LabsError, Notebook, Project

INDEX = Path("_build") / "html" / "index.html"
STAMP = "stamp.txt"
PUBLISHED = "results"
MOST_LINES_TOLD = 60
# Verdict to the color of its badge and its symbol, that of the notebooks.
VERDICTS = {"supported": ("success", "✔"), "not supported": ("danger", "✘"), "inconclusive": ("secondary", "?")}
AGREEMENTS = {
    "same": ("success", "=", "quick and source runs have the same verdict"),
    "undecided": ("secondary", "≈", "some of the runs are inconclusive, the others have the same verdict"),
    "opposite": ("danger", "≠", "supported in one run, not supported in another"),
    "one only": ("", "–", "tested in quick runs only, or in source runs only"),
}
# Of a recorded claim's text, this share must be found among the notebook's strings; the rest are inserted values.
LEAST_KNOWN_SHARE = 0.6
SHORT_FINGERPRINT = 8
BENCHMARKS = "benchmarks"
SOURCE_PAGES = "sphinx.ext.viewcode"
# What nbgrader's markers enclose, and what stands there instead.
ANSWERS = (
    (r"^([ \t]*)### BEGIN SOLUTION.*?### END SOLUTION", r"\1..."),
    (r"^[ \t]*### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS\n?", ""),
)
# MathJax out of this package makes formulas work without internet; without it the pages load MathJax from the web.
MATHJAX_PACKAGE = "sphinx-mathjax-offline"
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")
BINDER = "https://mybinder.org"
COLAB = "https://colab.research.google.com"

# Mistakes of the theme and of the extensions that Jupyter Book brings along, as the test in the browser found them:
# what stands on every page, and what is to stand there.
MENDED = (
    # Thebe is off, yet each page declares its constants, twice, which is a script error; and it would need the web.
    (r"<script>const THEBE_JS_URL.*?</script>", ""),
    (r'<script [^>]*src="[^"]*sphinx-thebe\.js[^>]*></script>', ""),
    (r'<link [^>]*href="[^"]*sphinx-thebe\.css[^>]*>', ""),
    # A screen reader would call the arrow beside a part nothing at all.
    (
        r'(<a class="[^"]*" href="[^"]*">)([^<]*)(</a><details[^>]*>)<summary>',
        r'\1\2\3<summary aria-label="Pages of: \2">',
    ),
    # These buttons are named otherwise than the text in them reads.
    (r'(<button class="btn search-button-field[^>]*?) title="[^"]*" aria-label="[^"]*"', r"\1"),
    (r'(<i class="theme-switch [^>]*?) title="[^"]*"', r"\1"),
    # What stands in this list has a role of its own, which a list must not hold.
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
)


class BookError(Exception):
    """Jupyter Book found something to complain about."""


def build(project: Project, results: Path, out: Path, *, answers: bool = True) -> Path:
    """Build the site from ``book/`` and the executed quick runs; where nothing changed, leave it as it is.

    Args:
        project: the lab.
        results: the folder of the results; every quick run there must be done.
        out: the folder of the book, replaced as a whole.
        answers: whether pages show the solutions of exercises, hidden tests and the module's source code.

    Returns:
        The first page of the site.

    Raises:
        LabsError: a notebook's quick run is not up to date.
        BookError: Jupyter Book warned or failed; what it said is in the message.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out.with_name(f".{out.name}.lock")):
        pages = _collect(project, results, answers)
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
            _mend(partial / INDEX.parent)
            (partial / STAMP).write_text(stamp)
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out / INDEX


def remove(out: Path) -> None:
    """Remove a book, so that nobody takes it for the present one."""
    shutil.rmtree(out, ignore_errors=True)


def _collect(project: Project, results: Path, answers: bool = True) -> dict[str, bytes]:
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
        status = freshness.status(project, run, results)
        if status.state != "done":
            changed = f" ({', '.join(status.changed)} changed)" if status.changed else ""
            raise LabsError(f"{run.label} is {status.state}{changed}: run it before the book is built")
        folder = run.folder(results)
        pages[f"notebooks/{run.notebook.name}.ipynb"] = _page_of(folder / "notebook.ipynb", answers)
        quick[run.notebook.name] = _metrics(folder)
    texts = {"claims.md": claims_page(notebooks, quick, published(book / PUBLISHED))}
    if f"{BENCHMARKS}.md" in pages:
        texts[f"{BENCHMARKS}_table.md"] = benchmarks_table(_read(book / PUBLISHED / f"{BENCHMARKS}.json"))
    texts |= reference_pages(project.package)
    pages |= {name: text.encode() for name, text in texts.items()}
    if "_config.yml" in pages:
        pages["_config.yml"] = _settings(pages["_config.yml"], answers)
    return pages


def _settings(text: bytes, answers: bool = True) -> bytes:
    """Jupyter Book's settings, with those added that depend on what is installed and where the lab is published."""
    config = yaml.safe_load(text) or {}
    if mathjax_source():
        sphinx = config.setdefault("sphinx", {})
        sphinx["config"] = (sphinx.get("config") or {}) | {"mathjax_path": f"mathjax/{MATHJAX_PARTS[0]}"}
    if not answers and SOURCE_PAGES in (extensions := config.get("sphinx", {}).get("extra_extensions", [])):
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


def _stamp(project: Project, pages: Mapping[str, bytes]) -> str:
    """What the site depends on: the pages, the code whose docstrings it shows, and the tools."""
    tools = [metadata.version(name) for name in ("jupyter-book", "sphinx", "sphinx-book-theme", "myst-nb")]
    parts = {name: hashlib.sha256(content).hexdigest() for name, content in pages.items()}
    code = freshness.hash_code(project.package)
    return hashlib.sha256(json.dumps([tools, code, parts], sort_keys=True).encode()).hexdigest()


def _page_of(path: Path, answers: bool = True) -> bytes:
    """An executed notebook without papermill's times and paths, which say nothing to a reader."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for pattern, replacement in () if answers else ANSWERS:
            cell.source = re.sub(pattern, replacement, cell.source, flags=re.DOTALL | re.MULTILINE)
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    return nbformat.writes(notebook).encode()


def _metrics(folder: Path) -> dict[str, Any]:
    return _read(folder / "metrics.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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


def _mend(folder: Path) -> None:
    """Correct in every page what ``MENDED`` lists."""
    for path in folder.rglob("*.html"):
        if "_static" in path.relative_to(folder).parts:
            continue
        before = after = path.read_text(encoding="utf-8")
        for pattern, replacement in MENDED:
            after = re.sub(pattern, replacement, after)
        if after != before:
            path.write_text(after, encoding="utf-8")


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
    """All claims as one page: what the sources say, what the runs show, quick and source runs side by side.

    A recorded claim that the present notebook no longer makes is not shown; the page says how many there are.

    Args:
        notebooks: name to notebook, for the titles and the claims that they make.
        quick: notebook's name to the metrics.json of its quick run.
        source_runs: what ``published`` returned.

    Returns:
        A page in MyST Markdown: the counts, one table for each source document, and the settings of the source runs.
    """
    rows: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}  # notebook and text to run to claim
    dropped: Counter[str] = Counter()
    for name, notebook in notebooks.items():
        for claim in quick.get(name, {}).get("claims", []):
            rows[name, claim["text"]] = {runner.QUICK: claim}
        texts = _strings(notebook)
        for run, metrics in source_runs.get(name, {}).items():
            for claim in metrics.get("claims", []):
                key = (name, claim["text"])
                if key in rows or _is_made(claim["text"], texts):
                    rows.setdefault(key, {})[run] = claim
                else:
                    dropped[f"`{name}:{run}`"] += 1
    lines = [
        "# What the sources claim, what our runs show",
        "",
        "Each claim is a statement of a source document, or one of this lab's own, tested on the numbers of a "
        "notebook. A verdict is computed from repeated seeds, never written by hand: *supported* where the whole 95 % "
        "interval lies on the claim's side, *not supported* where it lies on the other, *inconclusive* in between or "
        "with too few seeds. The quick run uses small embedded data; a source run uses a source's own settings and "
        "data, or comes as near to them as its name and [its settings](#source-runs) say.",
        "",
    ]
    if not rows:
        return "\n".join([*lines, "No notebook has tested a claim yet.", ""])
    document_of = {key: _document(next(iter(runs.values()))["source"]) for key, runs in rows.items()}
    documents = sorted(set(document_of.values()))
    tested = {key: runs[runner.QUICK]["verdict"] for key, runs in rows.items() if runner.QUICK in runs}
    quick_verdicts = [(document_of[key], verdict) for key, verdict in tested.items()]
    heads = {verdict: _badge(verdict) for verdict in VERDICTS}
    lines += ["## Verdicts of the quick runs", "", *_counts(documents, heads, quick_verdicts)]
    agreements = {key: _agreement(runs) for key, runs in rows.items()}
    heads = {name: _agreement_badge(name) for name in AGREEMENTS}
    lines += ["## Do quick and source runs agree?", ""]
    lines += _counts(documents, heads, [(document_of[key], agreement) for key, agreement in agreements.items()])
    lines += [f"- {heads[name]}: {meaning}" for name, (_, _, meaning) in AGREEMENTS.items()]
    lines += ["", *_opposites(rows, agreements)]
    for document in documents:
        table = [["Claim", "Agree?", "Quick run", "Source runs"]]
        for key, runs in rows.items():
            if document_of[key] != document:
                continue
            name, text = key
            claim = next(iter(runs.values()))
            where = f"{claim['source']} · [notebook {name.partition('_')[0]}](notebooks/{name}.ipynb)"
            first, others, told = "*not tested*", [], ""
            for run, found in runs.items():
                evidence = "" if found["evidence"] == told else found["evidence"]  # once is enough
                told = found["evidence"]
                if run == runner.QUICK:
                    first = f"{_badge(found['verdict'])}<br>{_numbers(found, evidence)}"
                else:
                    others.append(_source_outcome(name, run, found, evidence, source_runs[name][run]))
            badge = _agreement_badge(agreements[key])
            table.append([f"{text}<br>*{where}*", badge, first, "<br>".join(others) or "*not recorded*"])
        lines += [f"## {document}", "", *_list_table(table, widths="34 12 24 30", classes="claims")]
    lines += _source_run_pages(notebooks, quick, source_runs)
    if dropped:
        told = ", ".join(f"{label} {count}" for label, count in dropped.items())
        lines += [
            f"Not shown: {dropped.total()} recorded verdicts on statements that the notebooks no longer count among "
            f"their claims ({told}).",
            "",
        ]
    return "\n".join(lines)


def _document(source: str) -> str:
    """The document of a source: "D2 1-1" belongs to "D2"; what names no document stands for itself."""
    match = re.match(r"D\d+\b", source.strip())
    return match.group() if match else source.strip()


def _strings(notebook: Notebook) -> list[str]:
    """The texts in a notebook's code, longest first: what its claims are made of."""
    found: set[str] = set()
    for cell in nbformat.read(notebook.path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        try:
            nodes = ast.walk(ast.parse(cell.source))
        except SyntaxError:  # a line that only IPython reads
            continue
        found |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return sorted((text for text in found if len(text.strip()) > 2), key=len, reverse=True)


def _is_made(claim: str, texts: Iterable[str]) -> bool:
    """Whether a claim consists of a notebook's texts, but for the values that they take in."""
    rest = claim
    for text in texts:
        rest = rest.replace(text, "")
    return len(rest) <= (1 - LEAST_KNOWN_SHARE) * len(claim)


def _agreement(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """How the verdicts of the quick run and the source runs on one claim go together: a key of AGREEMENTS."""
    verdicts = {claim["verdict"] for claim in runs.values()}
    if runner.QUICK not in runs or len(runs) == 1:
        return "one only"
    if {"supported", "not supported"} <= verdicts:
        return "opposite"
    return "same" if len(verdicts) == 1 else "undecided"


def _opposites(
    rows: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]], agreements: Mapping[tuple[str, str], str]
) -> list[str]:
    """The claims on which runs contradict each other, all in one place."""
    lines = []
    for (name, text), runs in rows.items():
        if agreements[name, text] == "opposite":
            linked = {run: f"[{run}](#{_anchor(name, run)})" for run in runs} | {runner.QUICK: "quick run"}
            told = [f"{linked[run]} {_badge(claim['verdict'])}" for run, claim in runs.items()]
            lines.append(f"- {text}<br>{' · '.join(told)}")
    if not lines:
        return []
    what = "**Opposite verdicts.** Compare the settings: data, length of training and number of seeds are not the same."
    return [what, "", *lines, ""]


def _agreement_badge(name: str) -> str:
    color, symbol, _ = AGREEMENTS[name]
    return f"{{bdg-{color}-line}}`{symbol} {name}`" if color else f"{symbol} {name}"


def _badge(verdict: str) -> str:
    color, symbol = VERDICTS[verdict]
    return f"{{bdg-{color}}}`{symbol} {verdict}`"


def _counts(documents: Iterable[str], heads: Mapping[str, str], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A table of how often each document comes with each of the heads."""
    counts = Counter(pairs)
    table = [["Source", *heads.values(), "Claims"]]
    for document in documents:
        numbers = [counts[document, head] for head in heads]
        table.append([document, *map(str, numbers), str(sum(numbers))])
    if len(table) > 2:
        sums = [sum(count for (_, one), count in counts.items() if one == head) for head in heads]
        table.append(["**All**", *map(str, sums), str(sum(sums))])
    return _list_table(table, classes="counts")


def _numbers(claim: Mapping[str, Any], evidence: str) -> str:
    """Effect and interval of a claim, and what the numbers are."""
    if "id" in claim:  # others are from before claims said what was measured
        return claim["evidence"]
    from labutils.statistics import Interval  # brings scipy, which the other commands need not wait for

    numbers = dict(claim["interval"])
    for end, limit in (("low", -inf), ("high", inf)):  # JSON has null for the interval of a single seed
        numbers[end] = limit if numbers[end] is None else numbers[end]
    return f"{claim['measure']} {Interval(**numbers)}" + (f": {evidence}" if evidence else "")


def _source_outcome(name: str, run: str, claim: Mapping[str, Any], evidence: str, metrics: Mapping[str, Any]) -> str:
    """Verdict and numbers of a claim in a source run, whose name leads to its settings, its date and its data."""
    about = " · ".join(filter(None, (_date(metrics), _data(metrics))))
    verdict = f"{_badge(claim['verdict'])} [{run}](#{_anchor(name, run)})"
    return f"{verdict}<br>{_numbers(claim, evidence)}" + (f"<br>*{about}*" if about else "")


def _source_run_pages(
    notebooks: Mapping[str, Notebook],
    quick: Mapping[str, Mapping[str, Any]],
    source_runs: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[str]:
    """What each source run was: date, data, machine, versions, and the settings in which it differs."""
    shown = [(name, run, found) for name in notebooks for run, found in source_runs.get(name, {}).items()]
    lines = ["(source-runs)=", "## The source runs and their settings", ""]
    if not shown:
        return [*lines, "None is recorded yet.", ""]
    lines += [
        "`labs run NOTEBOOK:RUN` repeats one. Open a run to see in which settings it differs from the quick run, "
        "which you find at the top of each notebook.",
        "",
    ]
    for name, run, metrics in shown:
        provenance, time = metrics.get("provenance", {}), metrics.get("time", {})
        about = "".join(f" · {part}" for part in (_date(metrics), _data(metrics, fingerprint=False)) if part)
        lines += [f"::::{{dropdown}} {name}:{run}{about}", f":name: {_anchor(name, run)}", ""]
        for data in provenance.get("data", []):
            sizes = ", ".join(f"{data[part]:,} {part}" for part in ("train", "validation", "test") if data.get(part))
            file = f", file `{data['file']}`" if data.get("file") else ", embedded"
            lines.append(f"- Data: {data['name']} ({sizes}){file}, fingerprint `{data['fingerprint']}`")
        if not provenance.get("data"):
            lines.append("- Data: points of a function, which the notebook makes itself")
        device = provenance.get("accelerator") or provenance.get("device")
        took = f", {_duration(time['wall_seconds'])}" if "wall_seconds" in time else ""
        started = str(time.get("started", "")).replace("T", " ").replace("+00:00", " UTC")
        threads = provenance.get("threads")
        computed = f"on {device} with {threads} thread{'' if threads == 1 else 's'}"
        lines.append(f"- Started {started}{took}; {computed}")
        packages = ("labutils", "python", "torch", "numpy", "scipy")
        lines.append("- Versions: " + ", ".join(f"{one} {provenance[one]}" for one in packages if one in provenance))
        if changed := provenance.get("changed_since"):
            lines.append(f"- When it was published, these had changed since the run: {', '.join(changed)}")
        own, defaults = metrics.get("parameters", {}), quick.get(name, {}).get("parameters", {})
        table = [["Setting", "Source run", "Quick run"]]
        for key in {**own, **defaults}:
            if key not in own or key not in defaults or own[key] != defaults[key]:
                table.append([f"`{key}`", *(_value(values, key) for values in (own, defaults))])
        lines += ["", *(_list_table(table, widths="30 35 35") if len(table) > 1 else ["No setting differs.", ""])]
        lines += ["::::", ""]
    return lines


def _anchor(name: str, run: str) -> str:
    return f"run-{name}-{run}".lower().replace("_", "-").replace(".", "-").replace("+", "-")


def _date(metrics: Mapping[str, Any]) -> str:
    return str(metrics.get("time", {}).get("started", "")).partition("T")[0]


def _data(metrics: Mapping[str, Any], *, fingerprint: bool = True) -> str:
    """The names of a run's data sets, with the beginnings of their fingerprints."""
    found: dict[str, None] = {}
    for data in metrics.get("provenance", {}).get("data", []):
        short = f" `{data['fingerprint'][:SHORT_FINGERPRINT]}`" if fingerprint else ""
        found[data["name"] + short] = None
    return ", ".join(found)


def _value(values: Mapping[str, Any], key: str) -> str:
    return f"`{json.dumps(values[key], ensure_ascii=False)}`" if key in values else "–"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _list_table(rows: Iterable[list[str]], widths: str = "auto", classes: str = "") -> list[str]:
    lines = ["```{list-table}", ":header-rows: 1", f":widths: {widths}"]
    lines += [f":class: {classes}", ""] if classes else [""]
    for row in rows:
        for index, cell in enumerate(row):
            lines.append(("* - " if index == 0 else "  - ") + " ".join(cell.split()))
    return [*lines, "```", ""]


# --- The benchmarks ----------------------------------------------------------------------------------------------


def benchmarks_table(kept: Mapping[str, Any]) -> str:
    """The recorded benchmarks as MyST Markdown: the machine, then one table for each part.

    Args:
        kept: what ``python -m tests.benchmarks`` wrote; empty where nothing is recorded.
    """
    if not kept:
        return "No run of `make bench` is recorded yet.\n"
    rows, machine = kept["rows"], kept["machine"]
    reached = sum(row["reached"] for row in rows)
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    lines = [
        f"{kept['date'][:10]}: {reached} of {len(rows)} goals reached.",
        "",
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, {machine['system']}",
        f"- Threads: {machine['threads']}; load before the run: {machine['load_before']:g}",
        f"- Versions: {versions}",
        "",
    ]
    for part in dict.fromkeys(row["part"] for row in rows):
        table = [["Comparison", "Against", "Measured", "Goal", "Reached?"]]
        for row in (row for row in rows if row["part"] == part):
            unit = " s" if row["against"] == "clock" else ""
            goal = f"{'≥' if row['at_least'] else '≤'} {row['target']:g}{unit}"
            verdict = "{bdg-success}`✔ reached`" if row["reached"] else "{bdg-danger}`✘ missed`"
            what = f"{row['name']}<br>*{row['note']}*"
            table.append([what, row["against"], f"{row['ratio']:.2f}{unit}", goal, verdict])
        lines += [f"**{part.replace('_', ' ')}**", "", *_list_table(table, widths="40 13 15 14 18", classes="counts")]
    return "\n".join(lines)


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
