"""The book: the pages as built, and that mistakes in it are found."""

from __future__ import annotations

import ast
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
from bs4 import BeautifulSoup

from labs import runner, site
from labs.runner import LabsError, Project
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


# --- The glossary ------------------------------------------------------------------------------------------------


def glossary() -> list[str]:
    """The terms, in the order of the page."""
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    return re.findall(r"^(\S.*)$", text.partition("```{glossary}\n")[2].partition("\n```")[0], re.MULTILINE)


def prose() -> dict[str, str]:
    """What the pages say, the glossary left out, and what the notebooks say and label."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")}
    del pages["glossary.md"]
    notebooks = {path.name: nbformat.read(path, as_version=4) for path in (ROOT / "notebooks").glob("*.ipynb")}
    return pages | {name: "\n".join(cell.source for cell in read.cells) for name, read in notebooks.items()}


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
        *("_config.yml", "_toc.yml", "claims.md", "intro.md"),
        *("reference/index.md", "reference/labutils.cli.md", "reference/labutils.models.md"),
    ]
    page.write_text("# Another\n")
    assert [build(), build()] == [2, 2]
    (tiny_book.project.package / "cli.py").write_text('"""Other docstrings."""\n')
    assert [build(), build()] == [3, 3]
    (tmp_path / "book" / "_build" / "html" / "index.html").unlink()
    assert build() == 4


LAUNCH = "a[href^='https://mybinder.org'], a[href^='https://colab.']"


def publish_at(lab: TinyLab, url: str) -> None:
    """A book of one notebook, which is executed, with the setting of the repository."""
    lab.add("21_fit")
    execute = runner.execute(lab.project, runner.select(lab.load()), lab.results, jobs=1)
    assert [result.failure for result in execute] == [None]
    path = lab.root / "book" / "_config.yml"
    config = yaml.safe_load(path.read_text())
    config["repository"]["url"] = url
    path.write_text(yaml.safe_dump(config))
    (path.parent / "_toc.yml").write_text("format: jb-book\nroot: intro\nchapters:\n- file: notebooks/21_fit\n")
    (path.parent / "intro.md").write_text("# Introduction\n\nA word.\n")


@pytest.mark.notebook
def test_one_setting_gives_the_notebooks_launch_buttons(tiny_book: TinyLab, tmp_path: Path) -> None:
    assert yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["repository"]["url"] == ""
    publish_at(tiny_book, "https://github.com/someone/lab.git")
    pages = Site(site.build(tiny_book.project, tiny_book.results, tmp_path / "set").parent).pages
    links = [link["href"] for link in pages["notebooks/21_fit.html"].select(LAUNCH)]
    assert links == [
        "https://mybinder.org/v2/gh/someone/lab/main?urlpath=lab/tree/notebooks/21_fit.ipynb",
        "https://colab.research.google.com/github/someone/lab/blob/main/notebooks/21_fit.ipynb",
    ]
    assert (tiny_book.root / "notebooks" / "21_fit.ipynb").is_file()
    assert [name for name, page in pages.items() if page.select(LAUNCH)] == ["notebooks/21_fit.html"]
    publish_at(tiny_book, "")
    pages = Site(site.build(tiny_book.project, tiny_book.results, tmp_path / "unset").parent).pages
    assert [name for name, page in pages.items() if page.select(LAUNCH)] == []


def settings_for(lab: TinyLab, url: str) -> dict:
    path = lab.root / "book" / "_config.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"repository": {"url": url}}))
    return yaml.safe_load(site._settings(path.read_bytes()))


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


def test_a_book_for_students_shows_no_answers(tiny_book: TinyLab, tmp_path: Path, monkeypatch) -> None:
    solution = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x  # the-answer\n    ### END SOLUTION"
    check = (
        "assert double(1) == 2\n### BEGIN HIDDEN TESTS\nassert double(3) == 6  # the-hidden-one\n### END HIDDEN TESTS"
    )
    tiny_book.add("21_fit", solution, check)
    assert runner.execute(tiny_book.project, [tiny_book.run("21_fit")], tiny_book.results)[0].state == "done"
    config = tiny_book.root / "book" / "_config.yml"
    settings = yaml.safe_load(config.read_text())
    settings.setdefault("sphinx", {})["extra_extensions"] = ["sphinx.ext.autodoc", "sphinx.ext.viewcode"]
    config.write_text(yaml.safe_dump(settings))
    for answers in (True, False):
        pages = site._collect(tiny_book.project, tiny_book.results, answers)
        text = pages["notebooks/21_fit.ipynb"].decode()
        assert ("the-answer" in text, "the-hidden-one" in text) == (answers, answers)
        assert "def double" in text
        assert "assert double(1) == 2" in text
        assert (b"viewcode" in pages["_config.yml"]) == answers
        assert b"autodoc" in pages["_config.yml"]


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


def source_run(*claims: dict, **parameters: object) -> dict:
    data = {"name": "mnist", "fingerprint": "0123456789abcdef", "train": 60000, "test": 10000, "file": "mnist.npz"}
    provenance = {"labutils": "0.1.0", "python": "3.11.7", "device": "cpu", "threads": 1, "data": [data]}
    time = {"started": "2026-11-20T22:53:24+00:00", "wall_seconds": 3662.2}
    return {"claims": list(claims), "parameters": parameters, "provenance": provenance, "time": time}


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


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
    source_runs = {"21_fit": {"d2-sinc": source_run(claim(deep, "D2 1-1", "not supported", -0.42))}}
    text = site.claims_page(tiny_lab.load(), quick, source_runs)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# What the sources claim, what our runs show",
        "## Verdicts of the quick runs",
        "## Do quick and source runs agree?",
        "## D1",
        "## D2",
        "## this lab",
        "## The source runs and their settings",
    ]
    counts = section(text, "Verdicts of the quick runs")
    assert counts[counts.index("* - ") :].replace("\n  - ", " ").splitlines()[:5] == [
        "* - Source {bdg-success}`✔ supported` {bdg-danger}`✘ not supported` {bdg-secondary}`? inconclusive` Claims",
        "* - D1 0 0 1 1",
        "* - D2 1 0 0 1",
        "* - this lab 0 1 0 1",
        "* - **All** 1 1 1 3",
    ]
    agree = section(text, "Do quick and source runs agree?")
    assert agree[agree.index("* - D1") :].replace("\n  - ", " ").splitlines()[:4] == [
        "* - D1 0 0 0 1 1",
        "* - D2 0 0 1 0 1",
        "* - this lab 0 0 0 1 1",
        "* - **All** 0 0 1 2 3",
    ]
    assert "\n- Deep fits *sooner* | $x<y$<br>quick run {bdg-success}`✔ supported` · [d2-sinc](#run-21-fit-d2" in agree
    row = section(text, "D2")
    assert "* - Deep fits *sooner* | $x<y$<br>*D2 1-1 · [notebook 21](notebooks/21_fit.ipynb)*" in row
    assert "{bdg-danger-line}`≠ opposite`" in row
    assert "{bdg-success}`✔ supported`<br>mean effect 0.42 [0.31, 0.53], n = 8: nats" in row
    assert "{bdg-danger}`✘ not supported` [d2-sinc](#run-21-fit-d2-sinc)<br>mean effect -0.42" in row
    assert "-0.42 [0.31, 0.53], n = 8<br>*2026-11-20 · mnist `01234567`*" in row  # without saying "nats" again
    assert "mean effect 0.42 [-inf, inf], n = 8: nats" in section(text, "D1")
    assert text.count("*not recorded*") == 2


@pytest.mark.parametrize(
    ("quick", "sources", "agreement"),
    [
        ("supported", ["supported", "supported"], "same"),
        ("inconclusive", ["inconclusive"], "same"),
        ("supported", ["inconclusive"], "undecided"),
        ("inconclusive", ["supported", "inconclusive"], "undecided"),
        ("supported", ["not supported"], "opposite"),
        ("inconclusive", ["supported", "not supported"], "opposite"),
        ("supported", [], "one only"),
        (None, ["supported", "not supported"], "one only"),
    ],
)
def test_agreement_of_verdicts(quick: str | None, sources: list[str], agreement: str) -> None:
    runs = {"quick": {"verdict": quick}} if quick else {}
    runs |= {f"d{number}": {"verdict": verdict} for number, verdict in enumerate(sources)}
    assert site._agreement(runs) == agreement


def test_verdicts_have_the_symbols_that_notebooks_show() -> None:
    from labutils.claims import SYMBOLS

    assert {verdict: symbol for verdict, (_, symbol) in site.VERDICTS.items()} == SYMBOLS


def test_claims_that_a_notebook_no_longer_makes_are_counted_not_shown(tiny_lab: TinyLab) -> None:
    code = 'for name in ("d1", "d2"):\n    text = f"The deeper one fits sooner, on average ({name})."\n    print(text)'
    tiny_lab.add("21_fit", code, "%time 3", "other = 'Wide networks win in the end'")
    present = "The deeper one fits sooner, on average (d2)."
    old = claim("D2's matrix shows fewer negative eigenvalues (d2).", "this lab", "supported")
    recorded = {"21_fit": {"d2": source_run(claim(present, "D2 1-1", "supported"), old)}}
    text = site.claims_page(tiny_lab.load(), {}, recorded)
    assert present in text
    assert "*not tested*" in text
    assert "fewer negative" not in text
    assert "Not shown: 1 recorded verdicts" in text
    assert "(`21_fit:d2` 1)" in text
    shown = site.claims_page(tiny_lab.load(), {"21_fit": {"claims": [old]}}, recorded)
    assert "fewer negative" in shown
    assert "Not shown" not in shown


def test_a_claim_counts_for_the_source_that_the_present_notebook_names(tiny_lab: TinyLab) -> None:
    tiny_lab.add("21_fit")
    recorded = {"21_fit": {"d1": source_run(claim("So it is", "1-2", "supported"))}}
    text = site.claims_page(
        tiny_lab.load(), {"21_fit": {"claims": [claim("So it is", "D1 Q1", "supported")]}}, recorded
    )
    assert "## D1" in text
    assert "## 1-2" not in text
    assert "{bdg-success-line}`= same`" in section(text, "D1")


def test_each_source_run_tells_date_data_machine_versions_and_settings(tiny_lab: TinyLab) -> None:
    tiny_lab.add("21_fit")
    quick = {
        "21_fit": {"claims": [claim("So it is", "D1", "supported")], "parameters": {"n": 3, "seed": 0, "new": True}}
    }
    run = source_run(claim("So it is", "D1", "supported"), n=60000, seed=0, gone=[1, "a"])
    run["provenance"] |= {"accelerator": "NVIDIA H200", "changed_since": ["code"]}
    run["provenance"]["data"].append({"name": "digits", "fingerprint": "f" * 16, "train": 5, "test": 0, "file": None})
    bare = {"claims": [], "parameters": {"n": 3, "seed": 0, "new": True}}
    text = section(
        site.claims_page(tiny_lab.load(), quick, {"21_fit": {"d1": run, "d2.x": bare}}),
        "The source runs and their settings",
    )
    first, second = text.split("::::{dropdown} ")[1:]
    assert first.startswith("21_fit:d1 · 2026-11-20 · mnist, digits\n:name: run-21-fit-d1\n")
    assert "- Data: mnist (60,000 train, 10,000 test), file `mnist.npz`, fingerprint `0123456789abcdef`\n" in first
    assert "- Data: digits (5 train), embedded, fingerprint `ffffffffffffffff`\n" in first
    assert "- Started 2026-11-20 22:53:24 UTC, 1 h 1 min; on NVIDIA H200 with 1 thread\n" in first
    assert "- Versions: labutils 0.1.0, python 3.11.7\n" in first
    assert "these had changed since the run: code\n" in first
    assert '* - `n`\n  - `60000`\n  - `3`\n* - `gone`\n  - `[1, "a"]`\n  - –\n* - `new`\n  - –\n  - `true`\n' in first
    assert "seed" not in first
    assert second.startswith("21_fit:d2.x\n:name: run-21-fit-d2-x\n")
    assert "- Data: points of a function, which the notebook makes itself\n" in second
    assert "No setting differs." in second


def test_a_page_without_claims_says_so(tiny_lab: TinyLab) -> None:
    tiny_lab.add("21_fit")
    assert "No notebook has tested a claim yet." in site.claims_page(tiny_lab.load(), {"21_fit": {}}, {})
    told = site.claims_page(tiny_lab.load(), {"21_fit": {"claims": [claim("So it is", "D1", "supported")]}}, {})
    assert "None is recorded yet." in told


def test_the_table_of_benchmarks(tiny_lab: TinyLab) -> None:
    assert "No run of `make bench` is recorded yet." in site.benchmarks_table({})
    row = {"part": "by_hand", "name": "ours / torch's", "ratio": 0.8512, "target": 1, "at_least": False} | {
        "note": "n = 3", "against": "peer", "reached": True,
    }  # fmt: skip
    slow = row | {"part": "curvature", "name": "seconds", "ratio": 61.0, "target": 60, "against": "clock"}
    machine = {
        "cpu": "A CPU",
        "cores": 2,
        "memory_gib": 7.5,
        "system": "Linux x86_64",
        "threads": 2,
        "load_before": 0.1,
    }
    kept = {"date": "2026-11-21T10:00:00+00:00", "machine": machine, "versions": {"torch": "2.13.0"}} | {
        "rows": [row, slow | {"reached": False}]
    }
    text = site.benchmarks_table(kept)
    assert text.startswith("2026-11-21: 1 of 2 goals reached.\n")
    assert "- Machine: A CPU, 2 cores, 7.5 GiB, Linux x86_64\n- Threads: 2; load before the run: 0.1\n" in text
    by_hand, curvature = text.split("**curvature**")
    assert "**by hand**" in by_hand
    assert "* - ours / torch's<br>*n = 3*\n  - peer\n  - 0.85\n  - ≤ 1\n  - {bdg-success}`✔ reached`" in by_hand
    assert "  - clock\n  - 61.00 s\n  - ≤ 60 s\n  - {bdg-danger}`✘ missed`" in curvature


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
    assert set(pages) == {
        f"reference/{name}.md" for name in ("index", *(f"labutils.{m}" for m in ("cli", "models", "similarity")))
    }
    assert "* - [labutils.similarity](labutils.similarity.md)\n  - Compares `layers`.\n" in pages["reference/index.md"]
    assert ".. automodule:: labutils.similarity\n" in pages["reference/labutils.similarity.md"]


def test_nothing_that_a_student_imports_knows_the_command() -> None:
    for path in (ROOT / "labutils").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            used = [getattr(node, "module", None) or "", *names]
            assert not [name for name in used if name.partition(".")[0] == "labs"], f"{path.name} imports the command"
