"""The book: the pages as built, and that mistakes in it are found."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labs import pages, runner, site
from labs.runner import LabsError, Project
from tests.conftest import ROOT, TinyLab
from tests.test_browser import check_tools

pytestmark = pytest.mark.timeout(1800)


# --- Reading a site ----------------------------------------------------------------------------------------------


class Site:
    """The pages of a built site."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = {
            path.relative_to(folder).as_posix(): BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
            for path in sorted(folder.rglob("*.html"))
            if "_static" not in path.relative_to(folder).parts
        }

    def written(self) -> dict[str, BeautifulSoup]:
        """The pages that people write or notebooks make: not the indexes and listings."""
        made = ("genindex.html", "py-modindex.html", "search.html", "index.html", "_modules/")
        return {name: page for name, page in self.pages.items() if not name.startswith(made)}


def broken_links(built: Site) -> list[str]:
    """Links within the site that lead nowhere, as "page -> target"."""
    anchors = {
        name: {tag["id"] for tag in page.find_all(id=True)}
        | {tag["name"] for tag in page.find_all("a", {"name": True})}
        for name, page in built.pages.items()
    }
    broken = []
    for name, page in built.pages.items():
        links = [tag[key] for key in ("href", "src") for tag in page.find_all(attrs={key: True})]
        for link in links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = (built.folder / name).parent / unquote(parts.path) if parts.path else built.folder / name
            target = path.resolve()
            found = target.is_file()
            if found and parts.fragment and target.suffix == ".html":
                known = anchors[target.relative_to(built.folder.resolve()).as_posix()]
                found = unquote(parts.fragment) in known
            if not found:
                broken.append(f"{name} -> {link}")
    return broken


def images_without_alt(built: Site) -> list[str]:
    return [
        f"{name}: {str(image)[:80]}"
        for name, page in built.pages.items()
        for image in page.find_all("img")
        if not image.get("alt", "").strip()
    ]


def tracebacks(built: Site) -> list[str]:
    return [
        name
        for name, page in built.written().items()
        if not name.startswith("reference/")  # docstrings show how errors look, on purpose
        and (page.select(".output.traceback") or "Traceback (most recent call last)" in page.get_text())
    ]


def from_the_web(built: Site) -> list[str]:
    """Scripts, styles and pictures that a page fetches from elsewhere."""
    tags = [
        (name, tag.get("src") or tag.get("href") or "")
        for name, page in built.pages.items()
        for tag in page.find_all(["script", "img", "link"])
    ]
    return [f"{name}: {source}" for name, source in tags if urlsplit(source).scheme in ("http", "https")]


def title(page: BeautifulSoup) -> str:
    return page.title.get_text().strip()


# --- The real book -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(built_book: Path) -> Site:
    return Site(built_book)


@pytest.fixture(scope="module")
def named() -> list[str]:
    return list(runner.load_notebooks(Project(ROOT)))


@pytest.mark.notebook
def test_every_link_within_the_book_leads_somewhere(book: Site) -> None:
    assert broken_links(book) == []


@pytest.mark.notebook
def test_every_picture_says_what_it_shows(book: Site) -> None:
    assert images_without_alt(book) == []


@pytest.mark.notebook
def test_no_page_shows_a_traceback(book: Site) -> None:
    assert tracebacks(book) == []


@pytest.mark.notebook
def test_titles_tell_pages_apart(book: Site) -> None:
    assert {text: count for text, count in Counter(map(title, book.written().values())).items() if count > 1} == {}


@pytest.mark.notebook
def test_every_notebook_is_a_page_with_a_figure_of_its_run(book: Site, named: list[str], results: Path) -> None:
    shown = {Path(name).stem for name in book.pages if name.startswith("notebooks/")}
    assert shown == set(named), "a notebook is missing in book/_toc.yml"
    for name in named:
        pictures = book.pages[f"notebooks/{name}.html"].find_all("img")
        metrics = json.loads((results / name / "quick" / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["figures"]
        told = tuple(picture["alt"] for picture in pictures)  # a slider's go on with its value
        assert [
            figure["alt"] for figure in metrics["figures"] if not any(a.startswith(figure["alt"]) for a in told)
        ] == []


@pytest.mark.notebook
def test_the_claims_page_lists_every_claim_once(book: Site, named: list[str], results: Path) -> None:
    page = book.pages["claims.html"]
    shown = {block["id"]: block for block in page.select("details.claim")}
    for name in named:
        metrics = json.loads((results / name / "quick" / "metrics.json").read_text(encoding="utf-8"))
        for claim in metrics["claims"]:
            block = shown.pop(pages.Row(name, claim.get("id") or pages.anchor(claim["text"]), {}).anchor)
            words = " ".join(block.get_text(" ").split())
            assert all(word in words for word in claim["text"].split() if word.isalpha())
            assert claim["verdict"] in words
            assert block.find("a", href=re.compile(rf"notebooks/{name}.html"))
    assert all(block.find(string=re.compile("quick run")) is None for block in shown.values())


@pytest.mark.notebook
def test_a_document_is_linked_where_a_page_names_it_first(book: Site) -> None:
    text = book.pages["part2.html"].select_one("article")
    assert [link.get_text() for link in text.select("a[href*='documents.html#d']")] == ["D1", "D2"]
    assert all(not page.select("h1 a[href*='documents.html']") for page in book.pages.values())


@pytest.mark.notebook
def test_answers_and_long_code_are_folded_figures_numbered(book: Site, named: list[str]) -> None:
    for name in named:
        page = book.pages[f"notebooks/{name}.html"]
        assert not [
            code
            for code in page.select("div.cell_input pre")
            if "BEGIN SOLUTION" in code.get_text() and not code.find_parent("details")
        ]
        numbers = [tag.get_text() for tag in page.select("figure.numbered figcaption b")]
        assert numbers == [f"Figure {name[:2]}.{count}" for count in range(1, len(numbers) + 1)] != []


def fields(page: BeautifulSoup, name: str) -> list[Tag]:
    """The heads of docstring fields of a name, such as "Returns:"."""
    return [tag for tag in page.find_all("dt") if tag.get_text().strip() == name]


@pytest.mark.notebook
def test_a_colon_in_a_docstring_makes_no_type(book: Site) -> None:
    for name, page in book.pages.items():
        types = [tag.find_next("dd").get_text().strip() for tag in fields(page, "Return type:")]
        assert not [text for text in types if re.search(r"[a-z] [a-z]+ [a-z]", text)], name
    assert fields(book.pages["reference/labutils.similarity.html"], "Return type:")


@pytest.mark.notebook
def test_the_reference_keeps_tables_and_takes_no_words_for_types(book: Site) -> None:
    pages = {name: page for name, page in book.pages.items() if "reference/" in name}
    assert [name for name, page in pages.items() if page.select("blockquote")] == []  # indented: `::` is missing
    assert [name for name, page in pages.items() if fields(page, "Type:")] == []
    assert [name for name, page in pages.items() if "Alias for field number" in page.get_text()] == []


@pytest.mark.notebook
def test_every_public_name_of_the_module_has_an_entry(book: Site) -> None:
    documented = {
        tag["id"] for name, page in book.pages.items() if "reference/" in name for tag in page.find_all(id=True)
    }
    modules = [path.stem for path in (ROOT / "labutils").glob("*.py") if not path.stem.startswith("_")]
    assert modules
    for stem in modules:
        module = importlib.import_module(f"labutils.{stem}")
        for name, thing in vars(module).items():
            ours = getattr(thing, "__module__", None) == module.__name__
            if ours and not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing)):
                assert f"labutils.{stem}.{name}" in documented


@pytest.mark.notebook
def test_the_book_can_be_searched_and_read_offline(book: Site) -> None:
    index = (book.folder / "searchindex.js").read_text(encoding="utf-8")
    assert all(f'"{name}' in index for name in ("intro", "claims", "notebooks/"))
    if site.mathjax_source():
        assert from_the_web(book) == []
        assert (book.folder / "_static" / "mathjax" / "tex-chtml.js").is_file()


@pytest.mark.notebook
def test_an_unchanged_book_is_left_as_it_is(book: Site, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_run_jupyter_book", lambda folder: pytest.fail("built again"))
    out = book.folder.parents[1]
    assert site.build(Project(ROOT), results, out) == book.folder / "index.html"


# --- The checks can fail -----------------------------------------------------------------------------------------


def test_mistakes_in_pages_are_found(tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text(
        '<title>A</title><a href="bad.html#here">x</a><a href="#top" id="top">x</a><img src="a.png" alt="A dot.">'
        '<a href="https://example.org/gone">x</a><img src="data:image/png;base64,AAAA" alt="A line.">'
    )
    (tmp_path / "bad.html").write_text(
        '<title>A</title><p id="here"></p><a href="gone.html">x</a><a href="good.html#gone">x</a><a href="#gone">x</a>'
        '<img src="gone.png" alt=""><img src="a.png"><pre>Traceback (most recent call last)</pre>'
        '<script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "a.png").write_bytes(b"")
    built = Site(tmp_path)
    assert [link.split(" -> ")[1] for link in broken_links(built)] == [
        "gone.html",
        "good.html#gone",
        "#gone",
        "gone.png",
    ]
    assert all(link.startswith("bad.html") for link in broken_links(built))
    assert len(images_without_alt(built)) == 2
    assert tracebacks(built) == ["bad.html"]
    assert from_the_web(built) == ["bad.html: https://example.org/x.js"]


# --- The glossary ------------------------------------------------------------------------------------------------


def glossary() -> list[str]:
    """The terms, in the order of the page."""
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    return re.findall(r"^(\S.*)$", text.partition("```{glossary}\n")[2].partition("\n```")[0], re.MULTILINE)


def prose() -> dict[str, str]:
    """What the pages say, the glossary left out, and what the notebooks say and label."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")}
    del texts["glossary.md"]
    notebooks = {path.name: nbformat.read(path, as_version=4) for path in (ROOT / "notebooks").glob("*.ipynb")}
    return texts | {name: "\n".join(cell.source for cell in read.cells) for name, read in notebooks.items()}


def test_the_glossary_is_in_order_and_defines_what_the_text_refers_to() -> None:
    terms = glossary()
    assert terms == sorted(terms, key=str.lower)
    known = {term.lower() for term in terms}
    assert len(known) == len(terms)
    missing = {
        (name, target)
        for name, text in prose().items()
        for shown in re.findall(r"\{term\}`([^`]+)`", text)
        if (target := " ".join(re.sub(r".*<(.*)>", r"\1", shown, flags=re.DOTALL).split())).lower() not in known
    }
    assert missing == set()


# --- A tiny book -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_book(tiny_lab: TinyLab) -> TinyLab:
    """A lab with a book of one page and no notebook."""
    folder = tiny_lab.root / "book"
    folder.mkdir()
    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())
    del config["bibtex_bibfiles"]
    config["html"].pop("favicon")
    known = ("html_context", "html_theme_options", "myst_heading_anchors")  # to Sphinx without further extensions
    config["sphinx"] = {"recursive_update": True, "config": {name: config["sphinx"]["config"][name] for name in known}}
    (folder / "_config.yml").write_text(yaml.safe_dump(config))
    (folder / "_toc.yml").write_text("format: jb-book\nroot: intro\nchapters:\n- file: claims\n")
    (folder / "intro.md").write_text("# Introduction\n\nSee [what holds](claims.md).\n")
    return tiny_lab


def test_warnings_fail_the_build_and_leave_no_site(tiny_book: TinyLab, tmp_path: Path) -> None:
    out = tmp_path / "out" / "book"
    (out / "_build" / "html").mkdir(parents=True)
    (out / "_build" / "html" / "index.html").write_text("from before")
    (tiny_book.root / "book" / "intro.md").write_text("# Introduction\n\n[Nothing](nowhere.md)\n\n```{nonsense}\n```\n")
    with pytest.raises(site.BookError) as caught:
        site.build(tiny_book.project, tiny_book.results, out)
    told = str(caught.value).splitlines()
    assert told[0] == "the book was not built:"
    assert any("intro.md:3: WARNING" in line and "nowhere.md" in line for line in told)
    assert any("intro.md:5: WARNING: Unknown directive type: 'nonsense'" in line for line in told)
    assert [path.name for path in out.parent.iterdir()] == [".book.lock"]


def test_a_book_is_built_again_when_a_page_changes(tiny_book: TinyLab, tmp_path: Path, monkeypatch) -> None:
    built: list[list[str]] = []

    def run_jupyter_book(folder: Path) -> None:
        built.append(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
        (folder / site.INDEX).parent.mkdir(parents=True)
        (folder / site.INDEX).write_text("built")

    monkeypatch.setattr(site, "_run_jupyter_book", run_jupyter_book)
    page = tiny_book.root / "book" / "intro.md"
    recorded = tiny_book.root / "book" / "results" / "21_fit" / "d1"
    recorded.mkdir(parents=True)
    (recorded / "metrics.json").write_text('{"claims": []}')

    def build() -> int:
        index = site.build(tiny_book.project, tiny_book.results, tmp_path / "book")
        assert index == tmp_path / "book" / "_build" / "html" / "index.html"
        return len(built)

    assert [build(), build()] == [1, 1]
    assert built[0] == [
        *("_config.yml", "_toc.yml", "claims.csv", "claims.md", "intro.md"),
        *("reference/index.md", "reference/labutils.cli.md", "reference/labutils.models.md"),
    ]
    page.write_text("# Another\n")
    assert [build(), build()] == [2, 2]
    (tiny_book.project.package / "cli.py").write_text('"""Other docstrings."""\n')
    assert [build(), build()] == [3, 3]
    (tmp_path / "book" / "_build" / "html" / "index.html").unlink()
    assert build() == 4


@pytest.mark.notebook
def test_the_whole_book_can_be_printed(tiny_book: TinyLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_tools()
    book = tiny_book.root / "book"
    (book / "_toc.yml").write_text("format: jb-book\nroot: intro\nchapters:\n- file: more\n")
    (book / "intro.md").write_text("# Introduction\n\nA word, and $x^2$.\n")
    (book / "more.md").write_text("# More\n\nThe end.\n")
    index = site.build(tiny_book.project, tiny_book.results, tmp_path / "book", pdf=True)
    printed = (tmp_path / "book" / site.PDF).read_bytes()
    assert index.is_file()
    assert printed.startswith(b"%PDF")
    assert b"/Outlines" in printed
    monkeypatch.setattr(site, "_run_jupyter_book", lambda *_: pytest.fail("built again"))
    assert site.build(tiny_book.project, tiny_book.results, tmp_path / "book", pdf=True) == index
    monkeypatch.setenv("CHROMIUM", "no-such-browser")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LabsError, match="install one, or name it in CHROMIUM"):
        site.build(tiny_book.project, tiny_book.results, tmp_path / "book", pdf=True)


LAUNCH = "a[href^='https://mybinder.org'], a[href^='https://colab.']"


@pytest.mark.notebook
def test_one_setting_gives_the_notebooks_launch_buttons(tiny_book: TinyLab, tmp_path: Path) -> None:
    assert yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["repository"]["url"] == ""
    tiny_book.add("21_fit")
    [done] = runner.execute(tiny_book.project, runner.select(tiny_book.load()), tiny_book.results)
    assert done.failure is None
    settings_for(tiny_book, "https://github.com/someone/lab.git")
    book = tiny_book.root / "book"
    (book / "_toc.yml").write_text("format: jb-book\nroot: intro\nchapters:\n- file: notebooks/21_fit\n")
    (book / "intro.md").write_text("# Introduction\n\nA word.\n")
    built = Site(site.build(tiny_book.project, tiny_book.results, tmp_path / "set").parent).pages
    links = [link["href"] for link in built["notebooks/21_fit.html"].select(LAUNCH)]
    assert links == [
        "https://mybinder.org/v2/gh/someone/lab/main?urlpath=lab/tree/notebooks/21_fit.ipynb",
        "https://colab.research.google.com/github/someone/lab/blob/main/notebooks/21_fit.ipynb",
    ]
    assert (tiny_book.root / "notebooks" / "21_fit.ipynb").is_file()
    assert [name for name, page in built.items() if page.select(LAUNCH)] == ["notebooks/21_fit.html"]


def settings_for(lab: TinyLab, url: str) -> dict:
    path = lab.root / "book" / "_config.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"repository": {"url": url, "branch": "main"}}))
    return yaml.safe_load(site.settings(path.read_bytes()))


def test_colab_opens_only_what_is_on_github(tiny_book: TinyLab) -> None:
    launch = settings_for(tiny_book, "https://gitlab.com/someone/lab/")["launch_buttons"]
    assert launch["binderhub_url"] == "https://mybinder.org"
    assert "colab_url" not in launch
    assert not {"launch_buttons", "repository"} & set(settings_for(tiny_book, ""))


@pytest.mark.parametrize("url", ["someone/lab", "http://github.com/someone/lab", "https://github.com/someone"])
def test_a_wrong_repository_is_told(tiny_book: TinyLab, url: str) -> None:
    with pytest.raises(LabsError, match=rf"repository.url is '{url}'; write it as https://github.com/NAME"):
        settings_for(tiny_book, url)


def test_binder_finds_an_environment_with_cpu_torch() -> None:
    """Binder reads the file in the root unless there is a folder for it, and Python's version only as X.Y."""
    assert not any((ROOT / name).exists() for name in ("binder", ".binder", "Dockerfile"))
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert any(re.fullmatch(r"python =3\.\d+", line) for line in wanted if isinstance(line, str))
    assert any(line.startswith("pytorch-cpu ") for line in wanted if isinstance(line, str))
    assert not any(line.startswith(("pytorch ", "pytorch-gpu")) for line in wanted if isinstance(line, str))
    assert "-e ." in wanted[-1]["pip"]


def test_a_book_for_students_shows_no_answers(tiny_book: TinyLab) -> None:
    path = tiny_book.add("21_fit", "print(1)")
    notebook = nbformat.read(path, as_version=4)
    form = {"schema_version": 3, "task": False}
    for source, meta in (
        (SOLUTION, {"grade_id": "double", "grade": False, "solution": True, "locked": False}),
        (CHECK, {"grade_id": "double-test", "grade": True, "solution": False, "locked": True, "points": 1}),
    ):
        notebook.cells.append(new_code_cell(source, metadata={"nbgrader": form | meta}))
    nbformat.write(notebook, path)
    assert runner.execute(tiny_book.project, [tiny_book.run("21_fit")], tiny_book.results)[0].state == "done"
    config = tiny_book.root / "book" / "_config.yml"
    settings = yaml.safe_load(config.read_text())
    settings["sphinx"]["config"]["extensions"] = ["sphinx.ext.autodoc", "sphinx.ext.viewcode"]
    config.write_text(yaml.safe_dump(settings))
    for answers in (True, False):
        files = site.collect(tiny_book.project, tiny_book.results, answers)
        shown = nbformat.reads(files["notebooks/21_fit.ipynb"].decode(), as_version=4)
        text = "\n".join(cell.source for cell in shown.cells)
        assert ("the-answer" in text, "the-hidden-one" in text) == (answers, answers)
        assert "def double" in text
        assert "assert double(1) == 2" in text
        assert [output.text for cell in shown.cells for output in cell.get("outputs", [])] == ["1\n"]
        assert ("hide-input" in shown.cells[-2].metadata.get("tags", [])) == answers, "an empty exercise is not folded"
        assert "hide-input" in shown.cells[-1].metadata["tags"]
        assert (b"viewcode" in files["_config.yml"]) == answers


SOLUTION = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x  # the-answer\n    ### END SOLUTION"
CHECK = "assert double(1) == 2\n### BEGIN HIDDEN TESTS\nassert double(3) == 6  # the-hidden-one\n### END HIDDEN TESTS"


def test_texts_and_published_runs_are_those_of_now_outputs_those_of_the_run(tiny_book: TinyLab) -> None:
    """Neither outdates a result: who mends a sentence, or publishes a run, need not compute anything again."""
    code = "class Run:\n    def source_runs(self):\n        return 'as it was'\n\n\nrun = Run()\nprint(n)"
    path = tiny_book.add("21_fit", code, "run.source_runs()")
    assert runner.execute(tiny_book.project, [tiny_book.run("21_fit")], tiny_book.results)[0].state == "done"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += " A sentence of today."
    notebook.cells[2].source += "  # a comment of today"
    notebook.cells.insert(1, new_markdown_cell("A new cell."))
    nbformat.write(notebook, path)
    tiny_book.name_runs({"21_fit": {"d1": {"about": {"document": "D1"}, "n": 4}}})
    folder = tiny_book.root / "book" / "results" / "21_fit" / "d1"
    folder.mkdir(parents=True)
    about = {"parameters": {"n": 4}, "claims": [], "figures": [], "time": {"started": "2026-11-20T10:00:00+00:00"}}
    (folder / "metrics.json").write_text(json.dumps(about | {"provenance": {"data": []}}))
    assert tiny_book.state("21_fit").state == "done"
    shown = nbformat.reads(site.collect(tiny_book.project, tiny_book.results)["notebooks/21_fit.ipynb"].decode(), 4)
    assert shown.cells[0].source.endswith("A sentence of today.")
    assert shown.cells[1].source == "A new cell."
    assert shown.cells[3].source.endswith("# a comment of today")
    assert [output.text for output in shown.cells[3].outputs] == ["3\n"]
    [source_runs] = shown.cells[4].outputs
    assert "<strong>d1</strong>: at D1's own settings" in source_runs.data["text/html"].replace("&#x27;", "'")
    assert "as it was" not in str(source_runs)
    notebook.cells[3].update(source=code, id="another")
    nbformat.write(notebook, path)
    shown = nbformat.reads(site.collect(tiny_book.project, tiny_book.results)["notebooks/21_fit.ipynb"].decode(), 4)
    assert [output.text for output in shown.cells[3].outputs] == ["3\n"]


def test_figures_get_a_number_and_their_text_as_caption() -> None:
    picture = {"text/html": "<img src='x' alt='A line.'>", "text/plain": "Figure loss: A <line>."}
    slider = picture | {"text/plain": f"Slider over step: {picture['text/plain']}"}
    outputs = [new_output("display_data", data) for data in (picture, slider)]
    cell = new_code_cell("run.figure(f, 'loss', alt='A line.')", outputs=outputs)
    shown = nbformat.reads(site.notebook_page(new_notebook(cells=[cell]), "21_fit").decode(), as_version=4)
    texts = [output.data["text/html"] for output in shown.cells[0].outputs]
    assert all(f"<b>Figure 21.{n}</b> A &lt;line&gt;.</figcaption>" in text for n, text in enumerate(texts, 1))


def test_notebooks_that_are_not_done_make_no_book(tiny_book: TinyLab, tmp_path: Path) -> None:
    tiny_book.add("21_fit")
    with pytest.raises(LabsError, match="21_fit:quick is not run: run it before the book is built"):
        site.build(tiny_book.project, tiny_book.results, tmp_path / "book")
    (tiny_book.root / "book" / "_toc.yml").unlink()
    with pytest.raises(LabsError, match=r"has no _toc\.yml"):
        site.build(tiny_book.project, tiny_book.results, tmp_path / "book")
