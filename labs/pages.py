"""The pages that the book makes by itself: claims, results, benchmarks, reference; all in MyST Markdown.

What comes out of a metrics.json is shown as it is, whatever it holds: `plain` takes the meaning from every sign that
Markdown would read.
"""

from __future__ import annotations

import ast
import csv
import functools
import io
import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

from labs.progress import duration
from labs.runner import QUICK, LabsError, Notebook

if TYPE_CHECKING:
    from labutils.published import SourceRun  # brings numpy, which the other commands need not wait for

Metrics = Mapping[str, Any]

# Verdict to the color of its badge and its symbol, that of the notebooks.
VERDICTS = {"supported": ("success", "✔"), "not supported": ("danger", "✘"), "inconclusive": ("secondary", "?")}
AGREEMENTS = {
    "opposite": ("danger", "≠", "supported in one run, not supported in another"),
    "undecided": ("secondary", "≈", "some of the runs, or all, are inconclusive; no two contradict each other"),
    "same": ("success", "=", "the quick run and the source runs have the same verdict, and it is no open one"),
    "one only": ("light", "–", "tested in the quick run only, or in source runs only"),
}
SHORT_FINGERPRINT = 8


def plain(text: Any) -> str:
    """Return a text as Markdown that shows it as it is: nothing in it is markup or can run.

    Example:
        >>> plain("a <b> *c* {{ d }}")
        'a \\\\<b\\\\> \\\\*c\\\\* \\\\{\\\\{ d \\\\}\\\\}'
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(str(text).split()))


def anchor(*parts: str) -> str:
    """Return the name under which links find something.

    Example:
        >>> anchor("run", "21_fit", "d1.x")
        'run-21-fit-d1-x'
    """
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def badge(label: str, color: str = "light", *, line: bool = False) -> str:
    """Return a label of our own as a badge."""
    return f"{{bdg-{color}{'-line' if line else ''}}}`{label}`"


def list_table(rows: Iterable[Sequence[str]], widths: str = "auto", classes: str = "") -> list[str]:
    """Return lines of a table; the first row holds the headings."""
    lines = [
        "```{list-table}",
        ":header-rows: 1",
        f":widths: {widths}",
        *([f":class: {classes}"] if classes else []),
        "",
    ]
    for row in rows:
        for index, cell in enumerate(row):
            lines.append(("* - " if index == 0 else "  - ") + " ".join(cell.split()))
    return [*lines, "```", ""]


def read(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where it is missing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def source_runs(root: Path, notebooks: Iterable[str]) -> dict[str, SourceRun]:
    """Return the published source runs of notebooks by label, such as "21_fit:d1"."""
    from labutils import published

    runs = [run for name in notebooks for run in published.load(root, name) if run.metrics]
    return {f"{run.notebook}:{run.name}": run for run in runs}


# --- The claims page ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A claim as the quick run and the source runs of a notebook found it."""

    notebook: str
    id: str  # unique in its notebook
    runs: Mapping[str, Metrics]  # name of the run to the claim as its metrics.json has it; never empty

    @property
    def claim(self) -> Metrics:
        """The claim with the words and the source of the quick run, if that tests it."""
        return next(iter(self.runs.values()))

    @property
    def anchor(self) -> str:
        """Under which the claims page has it."""
        return anchor("claim", self.notebook.partition("_")[0], self.id)

    @property
    def document(self) -> str:
        """The document of its source: "D2 1-1" belongs to D2; what names no document stands for itself."""
        source = self.claim["source"].strip()
        match = re.match(r"D\d+\b", source)
        return match.group() if match else source

    @property
    def agreement(self) -> str:
        """How the verdicts of quick run and source runs go together: a key of AGREEMENTS."""
        verdicts = {claim["verdict"] for claim in self.runs.values()}
        if QUICK not in self.runs or len(self.runs) == 1:
            return "one only"
        if {"supported", "not supported"} <= verdicts:
            return "opposite"
        return "same" if len(verdicts) == 1 and "inconclusive" not in verdicts else "undecided"


def claim_rows(
    notebooks: Mapping[str, Notebook], quick: Mapping[str, Metrics], runs: Mapping[str, SourceRun]
) -> list[Row]:
    """Bring the claims of all runs together by notebook and id; one that the notebook no longer makes is left out.

    Args:
        notebooks: name to notebook.
        quick: notebook's name to the metrics.json of its quick run.
        runs: what `source_runs` returned.

    Returns:
        The rows, disagreements first.
    """
    rows: dict[tuple[str, str], dict[str, Metrics]] = {}
    for name in notebooks:
        for claim in quick.get(name, {}).get("claims", []):
            rows[name, claim["id"]] = {QUICK: claim}
    is_made = {name: made_by(notebook) for name, notebook in notebooks.items()}
    for run in runs.values():
        for claim in run.metrics.get("claims", []):
            if (run.notebook, claim["id"]) in rows or is_made[run.notebook](claim["id"]):
                rows.setdefault((run.notebook, claim["id"]), {})[run.name] = claim
    found = [Row(name, id, claims) for (name, id), claims in rows.items()]
    return sorted(found, key=lambda row: (row.agreement != "opposite", row.document))


def made_by(notebook: Notebook) -> Callable[[str], bool]:
    """Return whether a notebook may make the claim of an id: its code holds the id as a string.

    An f-string may have any words where the code inserts values; one of values alone counts in ``….claim(id, …)`` only.
    """
    patterns = []
    for cell in nbformat.read(notebook.path, as_version=4).cells:
        try:
            nodes = list(ast.walk(ast.parse(cell.source))) if cell.cell_type == "code" else []
        except SyntaxError:  # a line that only IPython reads
            nodes = []
        for node in nodes:
            match node:
                case ast.Constant(value=str(text)):
                    patterns.append(re.escape(text))
                case ast.Call(func=ast.Attribute(attr="claim"), args=[ast.JoinedStr() as id, *_]):
                    patterns.append(_pattern(id))
                case ast.JoinedStr() if re.search("[a-z]{2}", pattern := _pattern(node)):
                    patterns.append(pattern)
    whole = re.compile("|".join(patterns) or r"(?!)")
    return lambda id: whole.fullmatch(id) is not None


def _pattern(text: ast.JoinedStr) -> str:
    return "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in text.values)


def claims_page(notebooks: Mapping[str, Notebook], quick: Mapping[str, Metrics], runs: Mapping[str, SourceRun]) -> str:
    """Return all claims as one page: what the sources say, what the runs show, disagreements first.

    Each claim is a block that opens; book/_static/lab.js adds filters, search and sorting. Args: as of `claim_rows`.
    """
    rows = claim_rows(notebooks, quick, runs)
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
    lines += ["[All of them as a table (CSV)](claims.csv). A click on a claim shows what was measured.", ""]
    lines += [*_counts(rows), '<div class="claims-tools"></div>', ""]
    opposite = [row for row in rows if row.agreement == "opposite"]
    if opposite:
        lines += [
            "## Where quick and source runs disagree",
            "",
            "Compare the settings: data, length of training and number of seeds are not the same.",
            "",
            *(line for row in opposite for line in _claim(row, runs)),
        ]
    for document in dict.fromkeys(row.document for row in rows):
        shown = [row for row in rows if row.document == document and row.agreement != "opposite"]
        if shown:
            title = f"Claims of {plain(document)}" if document != "this lab" else "Claims of this lab"
            lines += [f"## {title}", "", *(line for row in shown for line in _claim(row, runs))]
    return "\n".join([*lines, *_source_runs(runs)])


def _counts(rows: Sequence[Row]) -> list[str]:
    """One table of the verdicts of the quick runs, and of how quick and source runs agree, by document."""
    heads = {verdict: badge(symbol, color) for verdict, (color, symbol) in VERDICTS.items()}
    heads |= {name: badge(symbol, color, line=True) for name, (color, symbol, _) in AGREEMENTS.items()}
    counts = Counter((row.document, row.agreement) for row in rows)
    counts += Counter((row.document, row.runs[QUICK]["verdict"]) for row in rows if QUICK in row.runs)
    documents = {plain(document): [document] for document in sorted({row.document for row in rows})}
    table = [["Source", *heads.values(), "Claims"]]
    for name, group in (documents | {"**All**": [row.document for row in rows]}).items():
        numbers = [sum(counts[document, head] for document in set(group)) for head in heads]
        table.append([name, *map(str, [*numbers, sum(row.document in group for row in rows)])])
    lines = list_table(table, classes="counts")
    lines += [f"- {' '.join(list(heads.values())[:3])}: supported, not supported, inconclusive in the quick run"]
    return [*lines, *(f"- {heads[name]} {name}: {meaning}" for name, (_, _, meaning) in AGREEMENTS.items()), ""]


def _verdict(verdict: str) -> str:
    color, symbol = VERDICTS[verdict]
    return badge(f"{symbol} {verdict}", color)


def _agreement(name: str) -> str:
    color, symbol, _ = AGREEMENTS[name]
    return badge(f"{symbol} {name}", color, line=True)


def _claim(row: Row, runs: Mapping[str, SourceRun]) -> list[str]:
    """A claim as a block that opens: the sentence and the verdicts outside, the numbers inside."""
    number, verdicts = row.notebook.partition("_")[0], {claim["verdict"] for claim in row.runs.values()}
    sources = [claim["verdict"] for run, claim in row.runs.items() if run != QUICK]
    told = [f"quick {_verdict(row.runs[QUICK]['verdict'])}"] if QUICK in row.runs else []
    told += [f"source {' '.join(map(_verdict, dict.fromkeys(sources)))}"] if sources else []
    told += [_agreement("opposite")] if row.agreement == "opposite" else []
    classes = ["claim", anchor("document", row.document), f"notebook-{number}", anchor("agreement", row.agreement)]
    classes += [anchor("verdict", verdict) for verdict in sorted(verdicts)] + ["key"] * bool(row.claim.get("key"))
    title = f"{plain(row.claim['text'])}<br>{plain(row.claim['source'])} · notebook {number} · {' · '.join(told)}"
    lines = [f"::::{{dropdown}} {title}", f":name: {row.anchor}", f":class-container: {' '.join(classes)}", ""]
    for name, claim in row.runs.items():
        run = runs.get(f"{row.notebook}:{name}")
        where = f"[{plain(name)}](#{anchor('run', row.notebook, name)})" if run else "quick run"
        about = f" · {plain(run.heading)}" if run else ""
        lines.append(f"- {_verdict(claim['verdict'])} {where}: {plain(claim['evidence'])}{about}")
    if not sources:
        lines.append("- No source run of it is recorded.")
    where = f"{{doc}}`Notebook {number} <notebooks/{row.notebook}>`"
    return [*lines, "", f"{where} · [link to this claim](#{row.anchor})", "::::", ""]


def claims_csv(rows: Iterable[Row]) -> str:
    """Return the claims as CSV, one line a claim and run. No cell is read as a formula by a spreadsheet."""
    from labutils.claims import needs_in_words

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    ours = ("text", "source", "key", "kind", "unit", "each", "needs", "verdict", "reason")
    interval = ("mean", "low", "high", "n")
    table.writerow(["notebook", "id", "document", "agreement", "run", *ours, *interval, "evidence"])
    for row in rows:
        for run, found in row.runs.items():
            claim = found | ({"needs": needs_in_words(found["needs"])} if found.get("needs") else {})
            cells = [row.notebook, row.id, row.document, row.agreement, run, *(claim.get(name, "") for name in ours)]
            cells += [*(claim["interval"].get(name) for name in interval), claim["evidence"]]
            table.writerow(
                [f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell for cell in cells]
            )
    return text.getvalue()


def _source_runs(runs: Mapping[str, SourceRun]) -> list[str]:
    """What each source run was: how near to the document, settings, data, machine, versions."""
    lines = ["(source-runs)=", "## The source runs and their settings", ""]
    if not runs:
        return [*lines, "None is recorded yet.", ""]
    lines += ["`labs run NOTEBOOK:RUN` repeats one. What its settings do not name is as in the quick run.", ""]
    for label, run in runs.items():
        lines += [f"::::{{dropdown}} {plain(label)} · {plain(run.heading)}"]
        lines += [f":name: {anchor('run', run.notebook, run.name)}", ":class-container: settings", ""]
        lines += [f"- {line}" for line in _provenance(run)]
        rows = [[plain(key), plain(json.dumps(value, ensure_ascii=False))] for key, value in run.settings.items()]
        lines += ["", *list_table([["Setting", "Value"], *rows], widths="35 65"), "::::", ""]
    return lines


def _provenance(run: SourceRun) -> Iterator[str]:
    provenance, time = run.metrics.get("provenance", {}), run.metrics.get("time", {})
    if run.differences:
        yield f"Not as in the document: {plain('; '.join(run.differences))}"
    for data in provenance.get("data", []):
        fingerprint = plain(data["fingerprint"][:SHORT_FINGERPRINT])
        yield f"Data: {plain(data['name'])}, {plain(data.get('file') or 'embedded')}, fingerprint {fingerprint}"
    device, threads = provenance.get("accelerator") or provenance.get("device"), provenance.get("threads")
    took = duration(time.get("wall_seconds", 0))
    yield f"Started {plain(time.get('started', '')[:16])}, {took}; on {plain(device)}, threads: {plain(threads)}"
    packages = ("labutils", "python", "torch", "numpy", "scipy")
    yield "Versions: " + ", ".join(f"{one} {plain(provenance[one])}" for one in packages if one in provenance)
    if made_by := provenance.get("made_by"):
        known = [f"{name} {plain(made_by[name])}" for name in ("version", "commit") if made_by.get(name)]
        yield ", ".join([f"Code: {plain(made_by['code'])}", *known])
    if changed := provenance.get("changed_since"):
        yield f"When it was published, these had changed since the run: {plain(', '.join(changed))}"


# --- The results page --------------------------------------------------------------------------------------------


def results_page(reported: Mapping[str, Any], runs: Mapping[str, SourceRun]) -> str:
    """Return every figure and table of the documents: what they report beside what our source runs give.

    Args:
        reported: what book/reported.yaml holds; its head says in which form.
        runs: what `source_runs` returned.

    Raises:
        LabsError: a published run does not hold what a row names.
    """
    lines = [
        "# Results: the documents' numbers and ours",
        "",
        "The numbers that the figures and tables of the documents report, beside what our [source runs](#source-runs) "
        "give. *Ours* is the mean over the seeds with its 95 % "
        f"interval. A document mostly trained once, so {_COMPARED['as reported']} says that its number lies where 19 "
        "of 20 further trainings of ours would (the 95 % prediction interval), or as near as the table says; otherwise "
        "ours is *higher* or *lower*. Where a document observes something in words, ours is the verdict on it: ✔ "
        "supported, ✘ not supported, ? inconclusive. Where a source run is *missing*, the line above the table says "
        "which. The page is made from `book/reported.yaml` and the published runs.",
        "",
    ]
    for document, tables in reported.items():
        lines += [f"## {document}", ""]
        for table in tables:
            near = [f"Ours is as reported within {table['within']:g}."] if "within" in table else []
            lines += [f"### {table['title']}", "", " ".join([table.get("about", ""), *near]), ""]
            lines += _reported(table, runs)
    return "\n".join(lines)


_COMPARED = {"as reported": "{bdg-success}`✔`", "higher": "{bdg-danger}`✘ higher`", "lower": "{bdg-danger}`✘ lower`"}


def _reported(table: Mapping[str, Any], runs: Mapping[str, SourceRun]) -> list[str]:
    """A table of the documents: where it has several columns of numbers, ours stand below the reported ones."""
    columns = table.get("columns", {"": None})
    heads = ["Reported", "Ours"] if "columns" not in table else [plain(name) for name in columns]
    lines, labels = [[table.get("what", ""), *heads]], {}
    for index, row in enumerate(table["rows"]):
        cells = []
        numbers = row["reported"] if "columns" in table else [row["reported"]]
        for column, number in zip(columns.values(), numbers, strict=True):
            wanted = row if "claim" in row else {"ours": table.get("ours")} | row
            label, found = ours(wanted, row.get("key", index), runs, column)
            labels[label] = runs.get(label)
            mine = _ours(table, number, found)
            cells += [plain(number), mine] if "columns" not in table else [f"{plain(number)}<br>*{mine}*"]
        lines.append([row["what"], *cells])
    told = [
        f"[{plain(label)}](#{anchor('run', run.notebook, run.name)}) ({plain(run.heading)})"
        if run
        else f"the source run `{label}`, which is not published yet"
        for label, run in labels.items()
    ]
    below = "In italics below each number: ours" if "columns" in table else "Ours"
    return [f"{below}, from {'; '.join(told)}.", "", *list_table(lines, classes="reported")]


def _ours(table: Mapping[str, Any], reported: str, found: list[float] | Metrics | None) -> str:
    """Our estimate, and how the reported number compares with it."""
    if found is None:
        return "missing"
    if isinstance(found, Mapping):  # a claim
        return f"{_verdict(found['verdict'])} {plain(found['evidence'])}"
    from labutils.statistics import INTERVALS

    kind = table.get("kind", "mean")
    told = plain(_as_exactly(found[0], reported) if len(found) == 1 else INTERVALS[kind](found))
    told = told.replace(r"n \= ", "n&nbsp;=&nbsp;")  # not broken over two lines
    compared = compare(reported, found, kind, table.get("within")) if table.get("compare", True) else ""
    return f"{told} {_COMPARED.get(compared, '')}".rstrip()


def _as_exactly(number: float, reported: str) -> str:
    """A number with as many decimals as the reported one, so that the two can be compared by eye."""
    match = re.fullmatch(r"-?\d*\.(\d+)", reported.strip())
    return f"{number:.{len(match[1])}f}" if match else f"{number:.3g}"


def ours(
    row: Mapping[str, Any], key: Any, runs: Mapping[str, SourceRun], column: Any = None
) -> tuple[str, list[float] | Metrics | None]:
    """Return our numbers for a row: those of the first of its runs that is published.

    Args:
        row: with ``ours``, run to the path of a metric, or ``claim``, run to the id of a claim.
        key: what stands for ``$key`` in the path.
        column: what stands for ``$column``.

    Returns:
        The label of the run; and a value a seed, the claim, or None if no such run is published.

    Raises:
        LabsError: a published run does not hold what the row names.
    """
    wanted = row.get("claim") or row["ours"]
    for label, path in wanted.items():
        if label not in runs:
            continue
        metrics = runs[label].metrics
        try:
            if "claim" in row:
                return label, next(claim for claim in metrics["claims"] if claim.get("id") == path)
            found = list(_walk(metrics["metrics"], _put(path, {"$key": key, "$column": column}), metrics))
            if not all(isinstance(value, int | float) for value in found):
                raise TypeError(f"{found!r:.60} are no numbers")
        except (LookupError, StopIteration, TypeError) as error:
            told = f"{type(error).__name__}: {error}"
            raise LabsError(f"book/reported.yaml, {row['what']!r}: {label} has no {path!r} ({told})") from None
        if found:
            return label, found
    return next(iter(wanted)), None


def _put(path: Any, values: Mapping[str, Any]) -> Any:
    """A path with values in place of their names."""
    if isinstance(path, list):
        return [_put(step, values) for step in path]
    if isinstance(path, dict):
        return {name: _put(step, values) for name, step in path.items()}
    return values.get(path, path) if isinstance(path, str) else path


def _walk(value: Any, path: Sequence[Any], metrics: Metrics) -> Iterator[Any]:
    """The numbers at the end of a path; none if it asks for a setting that the run does not have."""
    match path:
        case []:
            yield from value if isinstance(value, list) else [value]
        case ["seeds", *rest]:
            for entry in value:
                yield from _walk(entry, rest, metrics)
        case [{"at": where, "is": wanted}, *rest]:
            known = functools.reduce(operator.getitem, where, metrics)
            for index in [i for i, one in enumerate(known) if _same(one, wanted)][:1]:
                yield from _walk(value[index], rest, metrics)
        case [{"take": column, "where": wanted}, *rest]:  # a table that was recorded: lists by column
            for index, entry in enumerate(value[column]):
                if all(_same(value[name][index], one) for name, one in wanted.items()):
                    yield from _walk(entry, rest, metrics)
        case [step, *rest]:
            yield from _walk(value[step], rest, metrics)


def _same(one: Any, other: Any) -> bool:
    """Whether two settings are equal; decimal fractions may be off by rounding."""
    return one == other or (isinstance(other, float) and isinstance(one, float) and abs(one - other) < 1e-9)


def compare(reported: str, values: Sequence[float], kind: str = "mean", within: float | None = None) -> str:
    """Compare a reported number with ours: "as reported", "higher", "lower" (ours is), or "" if nobody can tell.

    Args:
        reported: as the document writes it: its digits say how exactly, "≈" one digit less.
        values: ours, one a seed.
        kind: "ratio" for positive numbers that are compared by their logarithms, such as losses.
        within: how far apart they may be; without it, as far as 95 % of further trainings would fall.

    Example:
        >>> compare("0.84", [0.83, 0.85, 0.84]), compare("0.90", [0.83, 0.85, 0.84]), compare("falls", [1.0, 2.0, 3.0])
        ('as reported', 'lower', '')
    """
    match = re.fullmatch(r"(≈ ?)?(-?\d*\.?(\d*))", reported.strip())
    if match is None or (len(values) < 3 and within is None):
        return ""
    import numpy as np
    from scipy import stats

    unit = 10.0 ** -len(match[3]) * (1 if match[1] else 0.5)
    scale = np.log if kind == "ratio" else np.asarray
    ours = scale(values)
    n, mean = len(ours), float(np.mean(ours))
    spread = within
    if spread is None:
        spread = stats.t.ppf(0.975, n - 1) * np.std(ours, ddof=1) * np.sqrt(1 + 1 / n)
    low, high = (float(scale(float(match[2]) + off)) for off in (-unit, unit))
    if low - spread <= mean <= high + spread:
        return "as reported"
    return "higher" if mean > high else "lower"


# --- The benchmarks ----------------------------------------------------------------------------------------------


def benchmarks_table(kept: Mapping[str, Any]) -> str:
    """Return the recorded benchmarks (of ``python -m tests.benchmarks``): the machine, then a table for each part."""
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
            verdict = badge("✔ reached", "success") if row["reached"] else badge("✘ missed", "danger")
            what = f"{row['name']}<br>*{row['note']}*"
            table.append([what, row["against"], f"{row['ratio']:.2f}{unit}", goal, verdict])
        lines += [f"**{part.replace('_', ' ')}**", "", *list_table(table, widths="40 13 15 14 18", classes="counts")]
    return "\n".join(lines)


# --- The reference pages -----------------------------------------------------------------------------------------


def reference_pages(package: Path, command: Path) -> dict[str, str]:
    """Return a page for each module that notebooks import, from its docstrings, and one that lists them and the
    command's.

    Returns:
        Path below the book's folder to MyST Markdown.
    """
    pages = {}
    rows = [["Module", "What it holds"]]
    for path, summary in _modules(package):
        module = f"{package.name}.{path.stem}"
        rows.append([f"[{module}]({module}.md)", summary])
        options = "   :members:\n   :ignore-module-all:\n   :member-order: bysource\n"
        directive = f"```{{eval-rst}}\n.. automodule:: {module}\n{options}```\n"
        pages[f"reference/{module}.md"] = f"# {module}\n\n{directive}"
    lines = ["# The module labutils", "", "What the notebooks share. These pages are made from the docstrings.", ""]
    lines += list_table(rows, widths="25 75")
    lines += ["## Behind the command", "", "`labs --help` tells what it does. It is made of these modules:", ""]
    rows = [[f"{command.name}.{path.stem}", summary] for path, summary in _modules(command)]
    lines += list_table([["Module", "What it does"], *rows], widths="25 75")
    pages["reference/index.md"] = "\n".join(lines)
    return pages


def _modules(package: Path) -> Iterator[tuple[Path, str]]:
    """The public modules of a package and the first line of each one's docstring."""
    for path in sorted(package.glob("*.py")):
        if not path.stem.startswith("_"):
            summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            yield path, summary.replace("``", "`")
