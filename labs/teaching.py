"""What the book offers to those who plan lessons, made from the notebooks: paths, a rubric, slides.

A notebook's first cell says how long it takes, how hard it is and what it builds on (links to other notebooks); an
exercise's cells say what it is worth and which mistakes its checks name. So nothing here can fall behind the notebooks.
"""

from __future__ import annotations

import ast
import csv
import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labs.pages import VERDICTS, Metrics, list_table, plain
from labs.runner import Notebook

BY_HAND = "An answer in words, which a person grades."
CLAIMS_A_SLIDE = 4  # as many as a beamer shows at once
HIDDEN = re.compile(r"(?s)### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS")


# --- Paths -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """What a notebook says of itself; empty where it does not say."""

    name: str
    title: str  # without what follows a colon
    minutes: str
    level: str
    needs: tuple[str, ...]  # the notebooks that it builds on

    @property
    def number(self) -> str:
        """The number that its name begins with; the first digit is the part."""
        return self.name.partition("_")[0]


def lessons(notebooks: Mapping[str, Notebook]) -> list[Lesson]:
    """Read the first cell of each notebook, in the order of their numbers; a need that comes later is left out."""
    found: list[Lesson] = []
    for name, notebook in sorted(notebooks.items()):
        opening = nbformat.read(notebook.path, as_version=4).cells[0].source
        _, _, before = opening.partition("**Before you start**")
        minutes, level = re.search(r"\*\*Time and difficulty\*\*\W+(\d+)\s+minutes\W+(\w+)|$", opening).groups("")
        links = re.findall(r"\]\((\d\w+)\.ipynb", before.partition("**Time")[0])
        needs = tuple(lesson.name for lesson in found if lesson.name in links)
        found.append(Lesson(name, notebook.title.partition(":")[0], minutes, level, needs))
    return found


def path_table(chosen: Iterable[Lesson]) -> str:
    """Return a table of notebooks: how long, how hard, what to have read before."""
    rows = [["Notebook", "Minutes", "Difficulty", "Builds on"]]
    for lesson in chosen:
        before = ", ".join(f"{{doc}}`{name.partition('_')[0]} <notebooks/{name}>`" for name in lesson.needs)
        notebook = f"{{doc}}`{lesson.number} · {lesson.title} <notebooks/{lesson.name}>`"
        rows.append([notebook, lesson.minutes or "–", lesson.level or "–", before or "–"])
    return "\n".join(list_table(rows, widths="55 12 15 18", classes="counts"))


STEP, ROW, WIDTH, HEIGHT = 58, 84, 46, 34  # of the map, in pixels


def path_map(chosen: Sequence[Lesson]) -> str:
    """Return a picture of what builds on what: a notebook stands below those that it needs, as near as it can."""
    rows: dict[str, int] = {}
    for lesson in chosen:
        rows[lesson.name] = 1 + max((rows[name] for name in lesson.needs), default=-1)
    at: dict[str, tuple[float, float]] = {}
    depth, widest = max(rows.values()) + 1, max(list(rows.values()).count(row) for row in rows.values())
    for row in range(depth):
        here = [lesson for lesson in chosen if rows[lesson.name] == row]
        here.sort(key=lambda lesson: sum(at[name][0] for name in lesson.needs) / max(len(lesson.needs), 1))
        for place, lesson in enumerate(here):
            at[lesson.name] = ((place + (widest - len(here)) / 2 + 0.5) * STEP, row * ROW + HEIGHT / 2 + 1)
    lines = []
    for lesson in chosen:
        x, y = at[lesson.name]
        for name in lesson.needs:
            x0, y0 = at[name][0], at[name][1] + HEIGHT / 2
            middle, end = (y0 + y - HEIGHT / 2) / 2, y - HEIGHT / 2
            lines.append(f'<path d="M {x0:g} {y0:g} C {x0:g} {middle:g} {x:g} {middle:g} {x:g} {end:g}"/>')
    for lesson in chosen:
        x, y = at[lesson.name]
        label = html.escape(f"{lesson.number}: {lesson.title}")
        lines.append(
            f'<a href="notebooks/{lesson.name}.html" aria-label="{label}"><title>{label}</title>'
            f'<rect x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text x="{x:g}" y="{y + 6:g}">{lesson.number}</text></a>'
        )
    size = f'viewBox="0 0 {widest * STEP} {(depth - 1) * ROW + HEIGHT + 2}"'
    picture = f'<svg class="map" role="group" aria-label="What builds on what" {size}>{"".join(lines)}</svg>'
    return f"```{{raw}} html\n{picture}\n```\n"


# --- The rubric --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A cell that gives points."""

    points: float
    about: tuple[str, ...]  # what it tries, by the docstrings of its functions
    causes: tuple[str, ...]  # the typical mistakes that it names


@dataclass(frozen=True)
class Exercise:
    """An exercise of a notebook."""

    notebook: str
    key: str  # the id of its solution cell
    title: str
    difficulty: str  # warm-up, core or challenge; empty where it does not say
    minutes: int | None
    checks: tuple[Check, ...]

    @property
    def points(self) -> float:
        """The sum over the checks."""
        return sum(check.points for check in self.checks)


def exercises(notebooks: Iterable[Notebook], hidden: bool = True) -> list[Exercise]:
    """Read the exercises of notebooks, with or without what only the hidden tests try."""
    return [exercise for notebook in notebooks for exercise in _exercises(notebook, hidden)]


def _exercises(notebook: Notebook, hidden: bool) -> Iterator[Exercise]:
    heading, solution, checks = "", None, []

    def finished() -> Iterator[Exercise]:
        if solution is not None:
            key, about = solution.metadata.nbgrader.grade_id, solution.metadata.get("exercise", {})
            title = heading or key.replace("-", " ")
            told = title[:1].upper() + title[1:], about.get("difficulty", ""), about.get("minutes")
            yield Exercise(notebook.name, key, *told, tuple(checks))

    for cell in nbformat.read(notebook.path, as_version=4).cells:
        graded = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "markdown" and (found := re.findall(r"(?m)^### Exercise: (.+)", cell.source)):
            yield from finished()
            heading, solution = found[-1], None
        if graded.get("solution"):
            yield from finished()
            solution, checks = cell, []
        if graded.get("grade"):
            checks.append(_check(cell, hidden) if cell.cell_type == "code" else Check(graded.points, (BY_HAND,), ()))
    yield from finished()


def _check(cell: NotebookNode, hidden: bool) -> Check:
    tree = ast.parse(cell.source if hidden else HIDDEN.sub("", cell.source))
    code = sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0))
    about = [ast.get_docstring(node) or "" for node in code if isinstance(node, ast.FunctionDef)]
    causes = []
    for node in code:
        match node:
            case ast.keyword(arg="causes", value=value) | ast.Assign(targets=[ast.Name(id="causes")], value=value):
                tables = [part for part in ast.walk(value) if isinstance(part, ast.Dict)]
                causes += [key.value for table in tables for key in table.keys if isinstance(key, ast.Constant)]
    return Check(
        cell.metadata.nbgrader.points,
        tuple(text.partition("\n")[0] for text in about if text),
        tuple(dict.fromkeys(causes)),
    )


def rubric_page(found: Sequence[Exercise]) -> str:
    """Return the page: all exercises in one table, then what gives the points of each and what to look for."""
    rows = [["Notebook", "Exercise", "Difficulty", "Minutes", "Points"]]
    for one in found:
        notebook = f"{{doc}}`{one.notebook.partition('_')[0]} <notebooks/{one.notebook}>`"
        title = f"[{plain(one.title)}](#exercise-{one.key})"
        rows.append([notebook, title, one.difficulty or "–", str(one.minutes or "–"), f"{one.points:g}"])
    minutes, points = sum(one.minutes or 0 for one in found), sum(one.points for one in found)
    rows.append(["**All**", f"{len(found)} exercises", "", str(minutes or "–"), f"{points:g}"])
    lines = [
        "# Rubric",
        "",
        "Every exercise with its difficulty, the time that it takes and its points, made from the notebooks. Points "
        "come from checks, which compare the student's function with a reference on random cases; where an exercise "
        "has several steps, each has points of its own. [The same as a table (CSV)](rubric.csv).",
        "",
        *list_table(rows, widths="12 48 14 13 13", classes="counts"),
        "## What gives the points, and what to look for",
        "",
        "A check that fails names these mistakes where it finds them; they are also what to look for in a solution "
        "that fails for another reason, and what to ask about one that passes. {doc}`schedule` says how to grade what "
        "no check can: explanations, and claims of the student's own.",
        "",
    ]
    for one in found:
        told = [one.difficulty, f"{one.minutes} minutes" if one.minutes else "", f"{one.points:g} points"]
        lines += [f"(exercise-{one.key})=", f"### {one.notebook[:2]}: {plain(one.title)}", ""]
        lines += [f"*{' · '.join(filter(None, told))}*", ""]
        for check in one.checks:
            about = " ".join(plain(text) for text in check.about)
            lines.append(f"- **{check.points:g}**: {about or plain('compares with the reference')}")
            lines += [f"  - {plain(cause)}" for cause in check.causes]
        lines.append("")
    return "\n".join(lines)


def rubric_csv(found: Iterable[Exercise]) -> str:
    """Return the rubric for a spreadsheet: one line an exercise."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["notebook", "exercise", "title", "difficulty", "minutes", "points"])
    for one in found:
        table.writerow([one.notebook, one.key, one.title, one.difficulty, one.minutes, f"{one.points:g}"])
    return text.getvalue()


# --- Slides ------------------------------------------------------------------------------------------------------


def slides(title: str, pages: Mapping[str, NotebookNode], quick: Mapping[str, Metrics]) -> NotebookNode:
    """Return the slides of a part as a notebook: questions to vote on, what source runs show, figures, key verdicts.

    Args:
        title: of the part.
        pages: name to executed notebook, its figures numbered (`labs.site.notebook_page`).
        quick: name to the metrics.json of its quick run.
    """
    cells = [_slide(f"# {title}")]
    for name, page in pages.items():
        opening = re.split(r"\n\s*\n", page.cells[0].source)
        cells.append(_slide(f"# {name[:2]} · {opening[0].lstrip('# ')}\n\n{opening[1]}"))
        cells += [_slide(question) for question in _questions(page, "Predict")]
        heading = ""
        for cell in page.cells:
            if cell.cell_type == "markdown":
                heading = (re.findall(r"(?m)^##+ .+", cell.source) or [heading])[-1]
            for output in cell.get("outputs", []):
                text = output.get("data", {}).get("text/html", "")
                if 'class="numbered"' in text or ('class="source-runs"' in text and "<img" in text):
                    shown = [new_output("display_data", {"text/html": text})]
                    figure = new_code_cell("", outputs=shown, metadata={"slideshow": {"slide_type": "-"}})
                    cells += [_slide("## " + heading.lstrip("# ")), figure]
        if keys := [claim for claim in quick[name].get("claims", []) if claim.get("key")]:
            told = [
                f"- {VERDICTS[claim['verdict']][1]} **{claim['verdict']}**: {html.escape(claim['text'])}<br>"
                f"<small>{html.escape(claim['evidence'])}</small>"
                for claim in keys
            ]
            for at in range(0, len(told), CLAIMS_A_SLIDE):
                cells.append(_slide("\n".join(["## What the quick run says", "", *told[at : at + CLAIMS_A_SLIDE]])))
        cells += [_slide(question) for question in _questions(page, "Recap")]
    for number, cell in enumerate(cells):
        cell.id = f"slide-{number}"  # by default random: the site would be built anew each time
    return new_notebook(cells=cells, metadata={"title": title})


def _slide(text: str) -> NotebookNode:
    text = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](../notebooks/\1.html", text)
    text = re.sub(r"\]\(\.\./(\w+)\.md", r"](../\1.html", text)
    return new_markdown_cell(text, metadata={"slideshow": {"slide_type": "slide"}})


def _questions(page: NotebookNode, section: str) -> Iterator[str]:
    """The questions of a section, each with its answers."""
    text = "\n\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    found = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    for question in re.split(r"(?m)^(?=\*\*\d+\. )", found)[1:]:
        yield f"## {section}\n\n{question.strip()}"


def slides_page(made: NotebookNode, template: Path, mathjax: str) -> str:
    """Return slides as a page for the browser, set by nbconvert with a template of the book; MathJax is where `mathjax`
    says.
    """
    from nbconvert import HTMLExporter  # takes a second

    text = template.read_text(encoding="utf-8")
    exporter = HTMLExporter(raw_template=text, exclude_input=True, exclude_anchor_links=True)
    text, _ = exporter.from_notebook_node(made, {"metadata": {"name": made.metadata.title}, "mathjax": mathjax})
    return text
