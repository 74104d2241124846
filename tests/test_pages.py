"""The pages that the book makes by itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from labs import pages, runner
from labs.runner import LabsError, Project
from labutils.claims import SYMBOLS
from labutils.published import SourceRun
from tests.conftest import ROOT, TinyLab


def claim(
    id: str, verdict: str, text: str = "Deep fits sooner.", source: str = "D2 1-1", **more: Any
) -> dict[str, Any]:
    interval = {"mean": 0.42, "low": 0.31, "high": 0.53, "n": 8, "confidence": 0.95}
    told = {"evidence": "measured 0.42 [0.31, 0.53] epochs, needs more than 0 · 8 seeds", "reason": "above 0"}
    return {"id": id, "text": text, "source": source, "verdict": verdict, "interval": interval, **told, **more}


def source_run(label: str, *claims: dict[str, Any], **more: Any) -> dict[str, SourceRun]:
    data = {"name": "mnist", "fingerprint": "0123456789abcdef", "train": 60000, "test": 10000, "file": "mnist.npz"}
    provenance = {"labutils": "0.1.0", "python": "3.11.7", "device": "cpu", "threads": 1, "data": [data]}
    time = {"started": "2026-11-20T22:53:24+00:00", "wall_seconds": 3662.2}
    metrics = {"claims": list(claims), "provenance": provenance, "time": time} | more
    notebook, _, name = label.partition(":")
    return {label: SourceRun(notebook, name, {"n": 60000, "sizes": [1, 2]}, Path(), document="D2", metrics=metrics)}


@pytest.fixture
def lab(tiny_lab: TinyLab) -> TinyLab:
    """A lab whose notebook makes the claim `deep`, and one for each network that it has."""
    tiny_lab.add("21_fit", 'run.claim("deep", "…")', 'for n in "ab":\n    run.claim(f"wide-{n}", "…")', "%time 3")
    return tiny_lab


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    assert f"\n## {heading}\n" in page, heading
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


# --- Text ---------------------------------------------------------------------------------------------------------


@given(st.text("ab <>&*_`$\\{}[]()#-+!|~^:\"'/=1.\n", max_size=40))
def test_text_from_a_record_is_shown_as_it_is(text: str) -> None:
    words = " ".join(text.split())
    for before in ("", "- ", "* - "):
        tokens = MarkdownIt("commonmark").parse(before + pages.plain(text))
        inner = [child for token in tokens for child in token.children or []]
        assert {child.type for child in inner} <= {"text", "text_special"}
        assert "".join(child.content for child in inner) == words


@pytest.mark.parametrize(
    "word", ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{ x }}", "```{raw} html"]
)
def test_nothing_in_a_record_becomes_markup(lab: TinyLab, word: str) -> None:
    bad = claim("deep", "supported", text=word, source=word, evidence=word, reason=word)
    runs = source_run("21_fit:d1", bad)
    metrics = runs["21_fit:d1"].metrics
    metrics["provenance"]["data"][0] |= {"name": word, "file": word, "fingerprint": word}
    metrics["provenance"] |= {"device": word, "torch": word, "changed_since": [word]}
    metrics["time"]["started"] = word
    runs["21_fit:d1"].settings[word] = word
    page = pages.claims_page(lab.load(), {"21_fit": {"claims": [bad]}}, runs)
    row = {"what": "x", "reported": "falls", "claim": {"21_fit:d1": "deep"}}
    page += pages.results_page({"D1": [{"title": "t", "rows": [row]}]}, runs)
    assert word not in page
    assert page.count(pages.plain(word)[:8]) > 10


def test_no_cell_of_the_csv_is_a_formula(lab: TinyLab) -> None:
    bad = claim("deep", "supported", "=HYPERLINK(1)", "@D2", needs={"above": 0.0})
    [head, cells] = csv.reader(io.StringIO(pages.claims_csv([pages.Row("21_fit", "deep", {"quick": bad})])))
    told = dict(zip(head, cells, strict=True))
    assert [told[name] for name in ("text", "source", "run", "mean")] == ["'=HYPERLINK(1)", "'@D2", "quick", "0.42"]
    assert told["needs"] == "more than 0"


# --- Claims -------------------------------------------------------------------------------------------------------


def test_disagreements_come_first_each_claim_can_be_linked_and_filtered(lab: TinyLab) -> None:
    quick = {
        "21_fit": {"claims": [claim("deep", "supported"), claim("wide-a", "inconclusive", "Wide wins.", "this lab")]}
    }
    runs = source_run("21_fit:d2-sinc", claim("deep", "not supported", "Other words, the same claim."))
    page = pages.claims_page(lab.load(), quick, runs)
    first = section(page, "Where quick and source runs disagree")
    assert "::::{dropdown} Deep fits sooner\\.<br>D2 1\\-1 · notebook 21 · quick {bdg-success}`✔ supported`" in first
    assert ":name: claim-21-deep\n" in first
    for name in ("document-d2", "notebook-21", "verdict-supported", "verdict-not-supported", "agreement-opposite"):
        assert name in first.partition(":class-container: ")[2].partition("\n")[0].split()
    assert "{bdg-danger}`✘ not supported` [d2\\-sinc](#run-21-fit-d2-sinc): measured 0\\.42" in first
    assert "· at D2\\'s own settings · MNIST" in first
    assert "Other words" not in page
    assert "Wide wins" in section(page, "Claims of this lab")
    assert "No source run of it is recorded." in section(page, "Claims of this lab")
    counts = page[page.index("* - **All**") :].replace("\n  - ", " ").splitlines()[0]
    assert counts == "* - **All** 1 0 1 1 0 0 1 2"


def test_ids_decide_which_claims_a_notebook_makes(lab: TinyLab) -> None:
    made = pages.made_by(lab.load()["21_fit"])
    assert [made(id) for id in ("deep", "wide-a", "wide-b-c", "deeper", "gone", "wider")] == [True] * 3 + [False] * 3
    claims = [claim(id, "supported", f"It is {id}.") for id in ("deep", "wide-x", "gone")]
    recorded = source_run("21_fit:d2", *claims)
    rows = pages.claim_rows(lab.load(), {}, recorded)
    assert [(row.id, row.agreement) for row in rows] == [("deep", "one only"), ("wide-x", "one only")]
    lab.add("21_fit", "for name in ['deep', 'gone']:\n    own_claim(name, f'{name} x')")
    assert [row.id for row in pages.claim_rows(lab.load(), {}, recorded)] == ["deep", "gone"], "through a variable"


@pytest.mark.parametrize(
    ("quick", "sources", "agreement"),
    [
        ("supported", ["supported", "supported"], "same"),
        ("inconclusive", ["inconclusive"], "undecided"),
        ("supported", ["inconclusive"], "undecided"),
        ("inconclusive", ["supported", "inconclusive"], "undecided"),
        ("supported", ["not supported"], "opposite"),
        ("inconclusive", ["supported", "not supported"], "opposite"),
        ("supported", [], "one only"),
        (None, ["supported", "not supported"], "one only"),
    ],
)
def test_agreement_of_verdicts(quick: str | None, sources: list[str], agreement: str) -> None:
    runs = {"quick": claim("a", quick)} if quick else {}
    runs |= {f"d{number}": claim("a", verdict) for number, verdict in enumerate(sources)}
    assert pages.Row("21_fit", "a", runs).agreement == agreement


def test_verdicts_have_the_symbols_that_notebooks_show() -> None:
    assert {verdict: symbol for verdict, (_, symbol) in pages.VERDICTS.items()} == SYMBOLS


def test_each_source_run_tells_date_data_machine_versions_and_settings(lab: TinyLab) -> None:
    runs = source_run("21_fit:d1", claim("deep", "supported"))
    runs["21_fit:d1"].metrics["provenance"] |= {"accelerator": "NVIDIA H200", "changed_since": ["code"]}
    made_by = {"code": "01ab", "version": "0.1.0", "commit": None, "date": "2026-11-20"}
    runs["21_fit:d1"].metrics["provenance"]["made_by"] = made_by
    page = pages.claims_page(lab.load(), {}, runs)
    text = section(page, "The source runs and their settings").replace("\\", "")
    assert "::::{dropdown} 21_fit:d1 · at D2's own settings · MNIST (60,000 to train, 10,000 to test)" in text
    assert "\n:name: run-21-fit-d1\n" in text
    assert "- Data: mnist, mnist.npz, fingerprint 01234567\n" in text
    assert "- Started 2026-11-20T22:53, 1 h 1 min; on NVIDIA H200, threads: 1\n" in text
    assert "- Versions: labutils 0.1.0, python 3.11.7\n" in text
    assert "- Code: 01ab, version 0.1.0\n" in text
    assert "these had changed since the run: code\n" in text
    assert "* - n\n  - 60000\n* - sizes\n  - [1, 2]\n" in text


def test_a_page_without_claims_says_so(lab: TinyLab) -> None:
    assert "No notebook has tested a claim yet." in pages.claims_page(lab.load(), {"21_fit": {}}, {})
    quick = {"21_fit": {"claims": [claim("deep", "supported")]}}
    assert "None is recorded yet." in pages.claims_page(lab.load(), quick, {})


# --- Results ------------------------------------------------------------------------------------------------------

REPORTED = yaml.safe_load((ROOT / "book" / "reported.yaml").read_text(encoding="utf-8"))
TABLE_KEYS, ROW_KEYS = (
    {"title", "about", "what", "ours", "columns", "compare", "kind", "within", "rows"},
    {"what", "reported", "key"},
)


def reported_rows() -> Iterator[tuple[dict[str, Any], dict[str, Any], Any, Any]]:
    for tables in REPORTED.values():
        for table in tables:
            for index, row in enumerate(table["rows"]):
                for column in table.get("columns", {"": None}).values():
                    yield table, row, row.get("key", index), column


def test_what_the_documents_report_is_well_formed_and_names_runs_that_exist() -> None:
    named = yaml.safe_load((ROOT / "notebooks" / "runs.yaml").read_text(encoding="utf-8"))
    labels = {f"{notebook}:{run}" for notebook, runs in named.items() for run in runs}
    for table, row, _, _ in reported_rows():
        assert set(table) <= TABLE_KEYS
        assert {"what", "reported"} <= set(row) <= ROW_KEYS | {"ours", "claim"}, row
        assert set(row.get("claim") or row.get("ours") or table["ours"]) <= labels
        assert all(isinstance(one, str) for one in (row["reported"] if "columns" in table else [row["reported"]])), row


def test_every_number_of_ours_is_in_the_published_runs() -> None:
    """Where a notebook was changed and its runs repeated, book/reported.yaml has to follow."""
    runs = pages.source_runs(ROOT, runner.load_notebooks(Project(ROOT)))
    found = [
        pages.ours(row if "claim" in row else {"ours": table.get("ours")} | row, key, runs, column)[1]
        for table, row, key, column in reported_rows()
    ]
    assert sum(values is not None for values in found) > 20


NUMBERS = {
    "accuracy": [[0.83, 0.85, 0.84], [0.9, 0.91, 0.92]],
    "curve": [[1.0, 2.0], [1.5, 2.5]],
    "alphas": [-0.5, 0.1],
    "table": {"rate": [0.1, 0.01, 0.01, 0.01], "part": ["test", "test", "train", "test"], "loss": [2.0, 3.0, 4.0, 5.0]},
}
RUNS = source_run("21_fit:d1", claim("deep", "supported"), metrics=NUMBERS, parameters={"rates": [0.1, 0.01]})


@pytest.mark.parametrize(
    ("path", "key", "found"),
    [
        (["accuracy", "$key"], 0, [0.83, 0.85, 0.84]),
        (["accuracy", {"at": ["parameters", "rates"], "is": "$key"}], 0.01, [0.9, 0.91, 0.92]),
        (["curve", "seeds", {"at": ["metrics", "alphas"], "is": "$key"}], 0.30000000000000004 - 0.2, [2.0, 2.5]),
        (["table", {"take": "loss", "where": {"rate": "$key", "part": "test"}}], 0.01, [3.0, 5.0]),
        (["table", {"take": "loss", "where": {"rate": 1.0}}], 0, None),
        (["accuracy", {"at": ["parameters", "rates"], "is": 3.0}], 0, None),  # a setting that the run does not have
    ],
)
def test_ours_is_found_by_its_path(path: list, key: Any, found: list[float] | None) -> None:
    assert pages.ours({"what": "x", "ours": {"21_fit:d1": path}}, key, RUNS) == ("21_fit:d1", found)


@pytest.mark.parametrize(
    "row",
    [
        {"ours": {"21_fit:d1": ["gone"]}},
        {"ours": {"21_fit:d1": ["table", {"take": "gone", "where": {}}]}},
        {"ours": {"21_fit:d1": ["curve"]}},
        {"claim": {"21_fit:d1": "gone"}},
    ],
)
def test_a_path_that_leads_nowhere_is_an_error(row: dict[str, Any]) -> None:
    with pytest.raises(LabsError, match=r"book/reported.yaml, 'x': 21_fit:d1 has no .*(gone|curve)"):
        pages.ours({"what": "x"} | row, 0, RUNS)


def test_a_row_that_a_published_run_lacks_is_missing_and_the_run_is_not() -> None:
    path = ["table", {"take": "loss", "where": {"rate": "$key"}}]
    rows = [{"what": str(rate), "reported": "1.0", "key": rate} for rate in (0.1, 1.0)]
    page = pages.results_page({"D1": [{"title": "A table", "ours": {"21_fit:d1": path}, "rows": rows}]}, RUNS)
    assert page.count("missing\n") == 1
    assert "not published" not in page


def test_results_stand_beside_the_reported_numbers() -> None:
    rows = [
        {"what": "first", "reported": "0.84"},
        {"what": "second", "reported": "≈ 0.95"},
        {"what": "third", "reported": "falls", "claim": {"21_fit:d1": "deep"}},
        {"what": "fourth", "reported": "1.0", "ours": {"22_image:d2": ["loss"]}},
    ]
    page = pages.results_page(
        {"D1": [{"title": "A table", "ours": {"21_fit:d1": ["accuracy", "$key"]}, "rows": rows}]}, RUNS
    )
    text = page.replace("\\", "").replace("\n  - ", " | ")
    assert "* - first | 0.84 | 0.840 [0.815, 0.865], n&nbsp;=&nbsp;3 {bdg-success}`✔`\n" in text
    assert "* - second | ≈ 0.95 | 0.910 [0.885, 0.935], n&nbsp;=&nbsp;3 {bdg-success}`✔`\n" in text
    assert "* - third | falls | {bdg-success}`✔ supported` measured 0.42" in text
    assert "* - fourth | 1.0 | missing\n" in text
    assert "Ours, from [21_fit:d1](#run-21-fit-d1) (at D2's own settings · MNIST" in text
    assert "· 2026-11-20); the source run `22_image:d2`, which is not published yet." in text


def test_where_a_table_has_columns_ours_stand_in_italics_below_the_reported_numbers() -> None:
    table = {"title": "A table", "columns": {"a": 0, "b": 1}, "ours": {"21_fit:d1": ["accuracy", "$column", "$key"]}}
    rows = [
        {"what": "first", "key": 0, "reported": ["-0.90", "0.9"]},
        {"what": "second", "key": 2, "reported": ["0.800", "many"]},
    ]
    told = {}
    for name, options in {"alone": {"compare": False}, "compared": {"within": 0.05}}.items():
        page = pages.results_page({"D0": [table | options | {"rows": rows}]}, RUNS)
        told[name] = MarkdownIt().render(page.split(":class: reported")[1].replace("  - ", "\n\n"))
    assert "-0.90<br><em>0.83</em>" in told["alone"]
    assert "0.800<br><em>0.840</em>" in told["alone"]
    assert "0.800<br><em>0.840 {bdg-success}<code>✔</code></em>" in told["compared"]


def test_losses_are_compared_by_their_logarithms() -> None:
    losses = [0.13, 0.33, 0.34, 0.38, 0.99, 0.99, 0.99, 0.99]
    assert pages.compare("≈ 0.05", losses, "ratio") == "higher"
    assert pages.compare("0.2", losses, "ratio") == "as reported"
    assert pages.compare("7", losses, "ratio") == "lower"
    assert pages.compare("0.5", [0.5, 0.5]) == "", "two seeds tell nothing"
    assert [pages.compare("0.906", [ours], within=0.03) for ours in (0.88, 0.93, 0.87)] == ["as reported"] * 2 + [
        "lower"
    ]


# --- Benchmarks, reference ----------------------------------------------------------------------------------------


def test_the_table_of_benchmarks() -> None:
    assert "No run of `make bench` is recorded yet." in pages.benchmarks_table({})
    row = {"part": "by_hand", "name": "ours / torch's", "ratio": 0.8512, "target": 1, "at_least": False} | {
        "note": "n = 3", "against": "peer", "reached": True,
    }  # fmt: skip
    slow = row | {"part": "curvature", "name": "seconds", "ratio": 61.0, "target": 60, "against": "clock"}
    machine = {"cpu": "A CPU", "cores": 2, "memory_gib": 7.5, "system": "Linux", "threads": 2, "load_before": 0.1}
    kept = {"date": "2026-11-21T10:00:00+00:00", "machine": machine, "versions": {"torch": "2.13.0"}} | {
        "rows": [row, slow | {"reached": False}]
    }
    text = pages.benchmarks_table(kept)
    assert text.startswith("2026-11-21: 1 of 2 goals reached.\n")
    by_hand, curvature = text.split("**curvature**")
    assert "* - ours / torch's<br>*n = 3*\n  - peer\n  - 0.85\n  - ≤ 1\n  - {bdg-success}`✔ reached`" in by_hand
    assert "  - clock\n  - 61.00 s\n  - ≤ 60 s\n  - {bdg-danger}`✘ missed`" in curvature


def test_a_new_module_gets_a_page_by_itself_the_command_a_table(tiny_lab: TinyLab) -> None:
    (tiny_lab.project.package / "similarity.py").write_text('"""Compares ``layers``.\n\nMore."""\n')
    command = tiny_lab.root / "labs"
    command.mkdir()
    (command / "site.py").write_text('"""Builds the book."""\n')
    made = pages.reference_pages(tiny_lab.project.package, command)
    names = ("index", *(f"labutils.{module}" for module in ("cli", "models", "similarity")))
    assert set(made) == {f"reference/{name}.md" for name in names}
    assert "* - [labutils.similarity](labutils.similarity.md)\n  - Compares `layers`.\n" in made["reference/index.md"]
    assert "* - labs.site\n  - Builds the book.\n" in made["reference/index.md"]
    assert ".. automodule:: labutils.similarity\n" in made["reference/labutils.similarity.md"]
