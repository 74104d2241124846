"""Paths, rubric and slides: what they say of made-up notebooks, and that they hold all of the real ones."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections import Counter

import nbformat
import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labs import runner, site, teaching
from labs.runner import Project
from labs.teaching import Check
from labutils import data, models, training
from tests.conftest import ROOT, TinyLab
from tests.exercises import EXERCISES, NOTEBOOKS, nbgrader_of

OPENING = """# {0}: what is it?

**Is it {0}?**

**Before you start**: words, and {1}. **Time and difficulty**: 40
minutes, hard.

Later, see [another](99_later.ipynb)."""


@pytest.fixture
def path(tiny_lab: TinyLab) -> list[teaching.Lesson]:
    """Three lessons: the second builds on the first, and names the third, which comes later; the third says nothing."""
    tiny_lab.add("11_one", text=OPENING.format("One", "nothing"))
    tiny_lab.add("21_two", text=OPENING.format("Two", "[one](11_one.ipynb) or [three](31_three.ipynb)"))
    tiny_lab.add("31_three", text="# Three\n\nWhat else?")
    return teaching.lessons(tiny_lab.load())


def test_a_notebook_says_how_long_it_takes_and_what_it_builds_on(path: list[teaching.Lesson]) -> None:
    assert [(one.number, one.title, one.minutes, one.level, one.needs) for one in path] == [
        ("11", "One", "40", "hard", ()),
        ("21", "Two", "40", "hard", ("11_one",)),
        ("31", "Three", "", "", ()),
    ]
    table = teaching.path_table(path)
    assert "{doc}`21 · Two <notebooks/21_two>`\n  - 40\n  - hard\n  - {doc}`11 <notebooks/11_one>`" in table
    assert table.count("- –") == 4


def test_the_map_puts_a_notebook_below_what_it_builds_on(path: list[teaching.Lesson]) -> None:
    page = BeautifulSoup(teaching.path_map(path), "html.parser")
    at = {link["href"]: (float(link.rect["x"]), float(link.rect["y"])) for link in page.select("svg.map a")}
    assert at["notebooks/21_two.html"][1] > at["notebooks/11_one.html"][1] == at["notebooks/31_three.html"][1]
    assert at["notebooks/11_one.html"][0] < at["notebooks/31_three.html"][0]
    assert len(page.select("path")) == 1
    assert [link["aria-label"] for link in page.select("a")] == ["11: One", "21: Two", "31: Three"]


def test_every_real_notebook_is_on_the_path() -> None:
    path = teaching.lessons(runner.load_notebooks(Project(ROOT)))
    assert [lesson.name for lesson in path] == list(NOTEBOOKS)
    assert [
        lesson.name for lesson in path if not lesson.minutes or lesson.level not in ("easy", "medium", "hard")
    ] == []
    assert sum(bool(lesson.needs) for lesson in path) > len(path) / 2


# --- The rubric --------------------------------------------------------------------------------------------------

CHECK = '''def check_double(seed: int) -> None:
    """Compare with a sum."""
    exercise.compare(attempt(3), 6, causes={"not *twice*": 3} | more)


check_double(0)
### BEGIN HIDDEN TESTS
causes = {"hidden trap": 0}
### END HIDDEN TESTS'''


def graded_lab(lab: TinyLab) -> list[runner.Notebook]:
    path = lab.add("21_fit")
    notebook = nbformat.read(path, as_version=4)

    form = {"schema_version": 3, "grade_id": "words", "grade": True, "solution": True}

    def cell(source: str, key: str, **more: object) -> nbformat.NotebookNode:
        form = {"schema_version": 3, "grade_id": key, "grade": "points" in more, "solution": "points" not in more}
        about = {"exercise": more.pop("about")} if "about" in more else {}
        return new_code_cell(source, metadata={"nbgrader": form | more} | about)

    notebook.cells += [
        new_markdown_cell("## Exercises\n\n### Exercise: double <it>\n\n*core · 15 minutes · 5 points*"),
        cell("def double(x):\n    return 2 * x", "double", about={"difficulty": "core", "minutes": 15}),
        cell(CHECK, "double-1", points=3),
        cell("assert double(0) == 0", "double-2", points=2),
        new_markdown_cell("### Exercise: half"),
        cell("def half(x):\n    return x / 2", "half"),
        new_markdown_cell("### Exercise: in words", metadata={"nbgrader": form | {"points": 2}}),
    ]
    nbformat.write(notebook, path)
    return list(lab.load().values())


def test_an_exercise_has_points_a_step_and_the_mistakes_that_its_checks_name(tiny_lab: TinyLab) -> None:
    notebooks = graded_lab(tiny_lab)
    double, half, words = teaching.exercises(notebooks)
    assert (double.title, double.difficulty, double.minutes, double.points) == ("Double <it>", "core", 15, 5)
    assert double.checks == (
        Check(3, ("Compare with a sum.",), ("not *twice*", "hidden trap")),
        Check(2, (), ()),
    )
    assert (half.title, half.difficulty, half.minutes, half.points) == ("Half", "", None, 0)
    assert (words.title, words.checks) == ("In words", (Check(2, (teaching.BY_HAND,), ()),))
    for_students = teaching.exercises(notebooks, hidden=False)[0]
    assert for_students.checks[0].causes == ("not *twice*",)
    page = teaching.rubric_page([double, half])
    assert "- **3**: Compare with a sum\\.\n  - not \\*twice\\*\n  - hidden trap\n- **2**: compares" in page
    assert "[Double \\<it\\>](#exercise-double)\n  - core\n  - 15\n  - 5\n" in page
    assert "2 exercises\n  - \n  - 15\n  - 5\n" in page
    rows = csv.DictReader(io.StringIO(teaching.rubric_csv([double, half])))
    assert [(row["exercise"], row["minutes"], row["points"]) for row in rows] == [
        ("double", "15", "5"),
        ("half", "", "0"),
    ]


def test_the_rubric_has_every_real_exercise_with_all_its_points() -> None:
    found = teaching.exercises(runner.load_notebooks(Project(ROOT)).values())
    assert {one.key for one in found} >= set(EXERCISES)
    graded = [(name, nbgrader_of(cell)) for name, notebook in NOTEBOOKS.items() for cell in notebook.cells]
    points, given = Counter(), Counter()
    for name, form in graded:
        points[name] += form["points"] if form.get("grade") else 0
    for one in found:
        given[one.notebook] += one.points
    assert given == points
    assert [one.key for one in found if not one.difficulty or not one.minutes] == []
    titles = [(one.notebook, one.title) for one in found]
    assert len(set(titles)) == len(titles)
    assert sum(bool(check.causes) for one in found for check in one.checks) > len(found) / 2


# --- Slides ------------------------------------------------------------------------------------------------------


ANSWER = "<details><summary>so</summary>\n\nNo.\n\n</details>"


def test_slides_hold_questions_figures_and_key_verdicts() -> None:
    figure = new_output("execute_result", {"text/html": "<figure class='numbered'>".replace("'", '"') + "F</figure>"})
    table = new_output("execute_result", {"text/html": "<table>T</table>"})
    page = new_notebook(
        cells=[
            new_markdown_cell("# Fit: who?\n\n**Who fits $x^2$?**\n\nLong text."),
            new_markdown_cell(
                "## Predict\n\n**1. Why?**\n\n<details><summary>so</summary>\n\nNo.\n\n</details>\n\n**2. How?**"
            ),
            new_markdown_cell("## Curves\n\nSee [glossary](../glossary.md)."),
            new_code_cell("secret code", outputs=[table, figure]),
            new_markdown_cell(
                "## What we saw\n\nText.\n\n## Recap\n\n**1. [Really](11_one.ipynb)?**\n\n## Next\n\nEnd."
            ),
        ]
    )
    claim = {"id": "a", "key": True, "verdict": "supported", "text": "<script>x</script>", "evidence": "measured 1"}
    quick = {"21_fit": {"claims": [*[claim] * 5, claim | {"key": False, "text": "left out"}]}}
    made = teaching.slides("Part 2", {"21_fit": page}, quick)
    starts = [cell.source.splitlines()[0] for cell in made.cells if cell.metadata.slideshow.slide_type == "slide"]
    assert starts == [
        *("# Part 2", "# 21 · Fit: who?", "## Predict", "## Predict", "## Curves"),
        *["## What the quick run says"] * 2,  # more than four claims are too much for one
        "## Recap",
    ]
    text = teaching.slides_page(made, ROOT / "book" / "_templates" / "slides.html.j2", "mathjax.js")
    slides = BeautifulSoup(text, "html.parser").select("section")
    assert [bool(slide.select("h1, h2")) for slide in slides] == [True] * 8
    assert slides[1].get_text(" ", strip=True) == "21 · Fit: who? Who fits $x^2$?"
    assert slides[2].details.get_text(" ", strip=True) == "so No."
    assert slides[4].figure.get_text() == "F"
    assert "<script>x" not in text
    assert slides[7].a["href"] == "../notebooks/11_one.html"
    for word in ("secret code", "left out", "Long text", "Next", ">T<", "http"):
        assert word not in text


@pytest.mark.notebook
def test_the_slides_of_the_book_show_every_figure(built_book) -> None:
    for part in "12345":
        slides = BeautifulSoup((built_book / site.SLIDES / f"part{part}.html").read_text("utf-8"), "html.parser")
        shown = [tag.get_text() for tag in slides.select("figcaption b")]
        pages = [
            (built_book / "notebooks" / f"{name}.html").read_text("utf-8") for name in NOTEBOOKS if name[0] == part
        ]
        assert shown == re.findall(r"<b>(Figure \d\d\.\d+)</b>", "".join(pages)) != []
        assert nbformat.read(built_book / site.SLIDES / f"part{part}.ipynb", as_version=4).cells


# --- The worked example ------------------------------------------------------------------------------------------


def test_the_worked_example_of_own_data_works(monkeypatch: pytest.MonkeyPatch, tiny_lab: TinyLab) -> None:
    text = (ROOT / "book" / "adapt.md").read_text(encoding="utf-8")
    for table in ("_CLASSES", "_EMBEDDED"):
        monkeypatch.setattr(data, table, getattr(data, table).copy())
    exec(re.search(r"(?s)```python\n(.*?)```", text)[1], dict(vars(data)))
    photos = data.load("photos", classes=["temple", "flower"], n_validation=200)
    assert (photos.train.x.shape, len(photos.validation), len(photos.test)) == ((1400, 3, 16, 16), 200, 480)
    assert photos.train.y.double().mean() == pytest.approx(0.5, abs=0.05)
    tile = photos.image(photos.train.x[0])
    from sklearn.datasets import load_sample_images

    corners = [np.abs(photo[:416, :640] / 255 - tile[0, 0]).sum(-1).min() for photo in load_sample_images().images]
    assert corners[photos.train.y[0]] < 1e-5
    _, networks = training.sweep(
        lambda seed: models.mlp([768, 16, 2], seed=seed), photos, seeds=1, epochs=2, batch_size=32, lr=0.01
    )
    assert networks.test_accuracy.item() > 0.6

    [run] = yaml.safe_load(re.search(r"(?s)```yaml\n(.*?)```", text)[1])["12_manual_sgd"].items()
    notebook = (ROOT / "notebooks" / "12_manual_sgd.ipynb").read_text(encoding="utf-8")
    (tiny_lab.project.notebooks / "12_manual_sgd.ipynb").write_text(
        notebook.replace(r"\"shapes\" |", r"\"shapes\" | \"photos\" |"), encoding="utf-8"
    )
    tiny_lab.name_runs({"12_manual_sgd": dict([run])})
    assert tiny_lab.run("12_manual_sgd:photos").parameters == run[1]
    words = shlex.split(re.search(r"(?s)labs run 12 (.*?)```", text)[1].replace("\\\n", ""))
    assert dict(zip(words[1::3], map(runner.parse_value, words[2::3]), strict=True)) == run[1]
