"""The book: the pages as built, and that mistakes in it are found."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

from labutils import runner, site
from labutils.runner import LabsError, Project, Result
from tests.conftest import ROOT, TinyLab

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
        if page.select(".output.traceback") or "Traceback (most recent call last)" in page.get_text()
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
def book(execute_notebook: Callable[[str], Result], results: Path, session_folder: Path) -> Site:
    project = Project(ROOT)
    for name in runner.load_notebooks(project):
        assert execute_notebook(name).failure is None
    index = site.build(project, results, session_folder / "book")
    return Site(index.parent)


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
    pages = {Path(name).stem for name in book.pages if name.startswith("notebooks/")}
    assert pages == set(named), "a notebook is missing in book/_toc.yml"
    for name in named:
        pictures = book.pages[f"notebooks/{name}.html"].find_all("img", src=lambda text: text.startswith("data:image/"))
        metrics = json.loads((results / name / "quick" / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["figures"]
        assert {figure["alt"] for figure in metrics["figures"]} <= {picture["alt"] for picture in pictures}


@pytest.mark.notebook
def test_the_claims_page_lists_every_claim(book: Site, named: list[str], results: Path) -> None:
    page = BeautifulSoup(str(book.pages["claims.html"]), "html.parser")
    rows = [" ".join(row.get_text(" ").split()) for row in page.select("article tr")]
    count = 0
    for name in named:
        metrics = json.loads((results / name / "quick" / "metrics.json").read_text(encoding="utf-8"))
        for claim in metrics["claims"]:
            count += 1
            links = page.find_all("a", href=f"notebooks/{name}.html")
            assert links
            # formulas and quotation marks are set differently: compare the plain words
            words = [word for word in claim["text"].split() if word.isalpha()]
            fitting = [row for row in rows if all(word in row for word in words) and claim["source"] in row]
            assert any(claim["verdict"] in row for row in fitting), claim["text"]
    first = page.select_one("table")
    assert first.select("tr")[-1].select("td")[-1].get_text().strip() == str(count)


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


# --- A tiny book -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_book(tiny_lab: TinyLab) -> TinyLab:
    """A lab with a book of one page and no notebook."""
    folder = tiny_lab.root / "book"
    folder.mkdir()
    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())
    del config["bibtex_bibfiles"]
    config["sphinx"]["extra_extensions"] = []
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
        *("_config.yml", "_toc.yml", "claims.md", "intro.md"),
        *("reference/index.md", "reference/labutils.cli.md", "reference/labutils.models.md"),
    ]
    page.write_text("# Another\n")
    assert [build(), build()] == [2, 2]
    (tiny_book.project.package / "cli.py").write_text('"""Other docstrings."""\n')
    assert [build(), build()] == [3, 3]
    (tmp_path / "book" / "_build" / "html" / "index.html").unlink()
    assert build() == 4


def test_notebooks_that_are_not_done_make_no_book(tiny_book: TinyLab, tmp_path: Path) -> None:
    tiny_book.add("21_fit")
    with pytest.raises(LabsError, match="21_fit:quick is not run: run it before the book is built"):
        site.build(tiny_book.project, tiny_book.results, tmp_path / "book")
    (tiny_book.root / "book" / "_toc.yml").unlink()
    with pytest.raises(LabsError, match=r"has no _toc\.yml"):
        site.build(tiny_book.project, tiny_book.results, tmp_path / "book")


# --- Generated pages ---------------------------------------------------------------------------------------------


def claim(text: str, source: str, verdict: str, mean: float = 0.42, **interval: float | None) -> dict:
    numbers = {"mean": mean, "low": 0.31, "high": 0.53, "n": 8, "confidence": 0.95} | interval
    return {"text": text, "source": source, "verdict": verdict, "measure": "mean effect", "interval": numbers} | {
        "evidence": "nats"
    }


def test_claims_are_grouped_by_document_with_both_verdicts(tiny_lab: TinyLab) -> None:
    tiny_lab.add("21_fit", text="# Function fitting\n\nWho fits?")
    tiny_lab.add("22_image", text="# Images\n\nDoes depth pay?")
    deep, wide = "Deep fits *sooner* | $x<y$", "Wide wins"
    quick = {
        "21_fit": {
            "claims": [claim(deep, "D2 1-1", "supported"), claim(wide, "D1 Q1", "inconclusive", low=None, high=None)]
        },
        "22_image": {"claims": [claim("So it is", "this lab", "not supported")]},
    }
    source_runs = {"21_fit": {"d2-sinc": {"claims": [claim(deep, "D2 1-1", "not supported", -0.42)]}}}
    text = site.claims_page(tiny_lab.load(), quick, source_runs)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# What the sources claim, what our runs show",
        "## Verdicts of the quick runs",
        "## D1",
        "## D2",
        "## this lab",
    ]
    counts = text[text.index("* - Source") : text.index("## D1")]
    assert counts.replace("\n  - ", " ").splitlines()[:5] == [
        "* - Source supported not supported inconclusive Claims",
        "* - D1 0 0 1 1",
        "* - D2 1 0 0 1",
        "* - this lab 0 1 0 1",
        "* - **All** 1 1 1 3",
    ]
    assert "{bdg-success}`supported`<br>mean effect 0.42 [0.31, 0.53], n = 8: nats" in text
    assert "`d2-sinc`: {bdg-danger}`not supported`<br>mean effect -0.42" in text
    assert "mean effect 0.42 [-inf, inf], n = 8: nats" in text
    assert "* - Deep fits *sooner* | $x<y$<br>*D2 1-1 · [Function fitting](notebooks/21_fit.ipynb)*" in text
    assert text.count("not recorded") == 2


def test_a_page_without_claims_says_so(tiny_lab: TinyLab) -> None:
    tiny_lab.add("21_fit")
    assert "No notebook has tested a claim yet." in site.claims_page(tiny_lab.load(), {"21_fit": {}}, {})


def test_recorded_source_runs_are_found(tmp_path: Path) -> None:
    assert site.published(tmp_path / "nothing") == {}
    for name in ("21_fit/d1", "21_fit/d2", "22_image/d1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").write_text(json.dumps({"run": name}))
    assert site.published(tmp_path) == {
        "21_fit": {"d1": {"run": "21_fit/d1"}, "d2": {"run": "21_fit/d2"}},
        "22_image": {"d1": {"run": "22_image/d1"}},
    }


def test_a_new_module_gets_a_page_by_itself(tiny_lab: TinyLab) -> None:
    (tiny_lab.project.package / "similarity.py").write_text('"""Compares ``layers``.\n\nMore."""\n')
    (tiny_lab.project.package / "__init__.py").write_text("")
    pages = site.reference_pages(tiny_lab.project.package)
    assert set(pages) == {f"reference/{name}.md" for name in ("index", *(f"labutils.{m}" for m in MODULES))}
    assert "* - [labutils.similarity](labutils.similarity.md)\n  - Compares `layers`.\n" in pages["reference/index.md"]
    assert ".. automodule:: labutils.similarity\n" in pages["reference/labutils.similarity.md"]


MODULES = ("cli", "models", "similarity")


def test_imports_run_downwards_only() -> None:
    """Nothing that a notebook uses depends on the command, so that the command's code makes no result stale."""
    for path in (ROOT / "labutils").glob("*.py"):
        if path.name in runner.COMMAND_MODULES:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, "module", "") or ""
            used = {part for name in [module, *names] for part in name.split(".")}
            assert not used & {"cli", "runner", "site"}, f"{path.name} imports the command"
