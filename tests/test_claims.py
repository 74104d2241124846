"""labutils.claims: verdicts, their reasons, what a claim says and how it is shown."""

import json
import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from IPython.core.formatters import DisplayFormatter
from scipy import stats

from labutils.claims import Claim, Claims, judge, needs_in_words
from labutils.statistics import INTERVALS


def claim(measured, **options) -> Claim:
    bound = {} if options.keys() & {"above", "below", "within"} or options.get("kind") == "share" else {"above": 0}
    return judge("learns", "The network learns.", **{"source": "D1", "measured": measured} | bound | options)


# --- verdicts

MANY = hnp.arrays(np.float64, st.integers(3, 20), elements=st.floats(-10, 10, allow_subnormal=False))


@given(values=MANY, threshold=st.floats(-3, 3))
def test_the_verdict_on_a_mean_is_that_of_a_two_sided_t_test(values, threshold):
    if values.std() < 1e-6:
        return
    test = stats.ttest_1samp(values, threshold)
    if abs(test.pvalue - 0.05) < 1e-9:
        return
    expected = "inconclusive" if test.pvalue > 0.05 else "supported" if test.statistic > 0 else "not supported"
    assert claim(values, above=threshold).verdict == expected


@given(outcomes=st.lists(st.booleans(), min_size=3, max_size=40))
def test_the_verdict_on_a_share_is_that_of_two_one_sided_binomial_tests(outcomes):
    hits, n = sum(outcomes), len(outcomes)
    many = stats.binomtest(hits, n, 0.5, alternative="greater").pvalue < 0.025
    few = stats.binomtest(hits, n, 0.5, alternative="less").pvalue < 0.025
    verdict = claim(outcomes, kind="share").verdict
    assert verdict == ("supported" if many else "not supported" if few else "inconclusive")


@given(values=MANY, threshold=st.floats(-3, 3))
def test_above_and_below_are_opposites(values, threshold):
    opposite = {"supported": "not supported", "not supported": "supported", "inconclusive": "inconclusive"}
    above, below = claim(values, above=threshold), claim(values, below=threshold)
    assert below.verdict == opposite[above.verdict]
    assert claim(-values, below=-threshold).verdict == above.verdict


@given(values=MANY, edges=st.tuples(st.floats(-3, 0), st.floats(0.1, 3)))
def test_within_needs_both_sides_and_is_refuted_by_one(values, edges):
    sides = {claim(values, above=edges[0]).verdict, claim(values, below=edges[1]).verdict}
    [expected] = sides if len(sides) == 1 else sides & {"not supported"} or {"inconclusive"}
    if values.std() > 1e-6:  # without spread, a value at an end is within, but not beyond it
        assert claim(values, within=edges).verdict == expected


@pytest.mark.parametrize(
    ("measured", "options", "verdict", "reason"),
    [
        ([0.4, 0.5, 0.6], {}, "supported", "the whole 95 % interval meets the need"),
        ([-0.4, -0.5, -0.6], {}, "not supported", "no part of the 95 % interval meets the need"),
        ([0.4, 0.5, 0.6], {"below": 1}, "supported", "the whole"),
        ([2.0, 2.0, 2.0], {}, "supported", "the whole"),
        ([120, 80, 95], {}, "supported", "the whole"),
        ([1, 0, 1], {}, "inconclusive", "too few seeds: about 6 would decide at this spread"),
        ([0.5, 0.5], {}, "inconclusive", "too few seeds: a verdict needs at least 3"),
        ([0.5], {}, "inconclusive", "too few seeds: a verdict needs at least 3"),
        ([-1.0, 0.0, 1.0], {}, "inconclusive", "the effect is at the threshold: more seeds would not decide"),
        ([-1.0, 0.1, 1.2], {}, "inconclusive", "the effect is near the threshold: about 470 seeds would decide"),
        ([1.0, 1.0, 1.0], {"within": (1, 2)}, "supported", "the whole"),
        ([1.0, 1.5, 2.0], {"within": (1.4, 1.6)}, "inconclusive", "too few seeds: about 99 would decide"),
        ([1.0, 1.1, 1.2], {"within": (2, 3)}, "not supported", "no part"),
        ([True] * 5, {"kind": "share"}, "inconclusive", "too few seeds: about 6 would decide at this spread"),
        ([True] * 6, {"kind": "share"}, "supported", "the whole"),
        ([False] * 6, {"kind": "share"}, "not supported", "no part"),
        ([False] * 20, {"kind": "share", "within": (0, 0.2)}, "supported", "the whole"),
        ([True, False] * 4, {"kind": "share"}, "inconclusive", "the effect is at the threshold"),
        ([0.989, 0.962, 0.999], {"kind": "fraction", "within": (0.9, 1)}, "supported", "the whole"),
        ([0.98, 0.99, 0.97], {"kind": "correlation", "above": 0.9}, "supported", "the whole"),
        ([1.0, 1.0, 1.0], {"kind": "correlation", "within": (0.9, 1)}, "supported", "the whole"),
        ([0.9, 0.2, 0.7], {"kind": "correlation"}, "inconclusive", "too few seeds"),
        ([2.0, 3.0, 2.5], {"kind": "ratio", "above": 1}, "supported", "the whole"),
        ([0.5, 1.0, 2.0], {"kind": "ratio", "above": 1}, "inconclusive", "the effect is at the threshold"),
    ],
)
def test_verdicts_and_their_reasons(measured, options, verdict, reason):
    made = claim(measured, **options)
    assert made.verdict == verdict
    assert made.reason.startswith(reason)


@pytest.mark.parametrize(
    ("measured", "options"),
    [
        ([1e-17] * 3, {}),
        ([1e-17, 2e-17, 1.5e-17], {}),
        ([0.1 + 0.2] * 3, {"above": 0.3}),
        ([1e6 + 1e-10] * 4, {"below": 1e6}),
        ([1 + 2.3e-16] * 3, {"kind": "ratio", "above": 1}),
        ([0.0] * 3, {}),
    ],
)
def test_differences_of_rounding_size_decide_nothing(measured, options):
    made = claim(measured, **options)
    assert made.verdict == "inconclusive"
    assert made.reason == "the effect is at the threshold: all values equal it, but for rounding"


def test_small_numbers_are_no_rounding_where_the_threshold_is_small():
    assert claim([3e-20, 3.1e-20, 2.9e-20], above=1e-20).verdict == "supported"


@given(
    kind=st.sampled_from(["mean", "correlation", "ratio"]),
    values=hnp.arrays(np.float64, st.integers(3, 8), elements=st.floats(0.01, 0.9)),
)
def test_as_many_seeds_as_it_says_would_decide(kind, values):
    made = claim(values, kind=kind, above=0.3)
    if not (found := re.search(r"about (\d+) would decide", made.reason)):
        return
    more = int(found[1])
    back = {"mean": (np.asarray, np.asarray), "correlation": (np.arctanh, np.tanh), "ratio": (np.log, np.exp)}[kind]
    x = back[0](values)
    like = np.linspace(-1, 1, more)  # as many values with the same mean and spread
    like = back[1](x.mean() + like / like.std(ddof=1) * x.std(ddof=1))
    assert claim(like, kind=kind, above=0.3).verdict != "inconclusive"


# --- what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"measured": []}, ValueError, "'learns': values are empty"),
        (
            {"measured": [[1.0]]},
            ValueError,
            r"'learns': values must be one-dimensional, one a seed, got shape \(1, 1\)",
        ),
        ({"measured": None}, TypeError, "measured must be numbers, got object"),
        ({"measured": [1.0, np.nan, np.inf]}, ValueError, "'learns': 2 of 3 values are NaN or infinite: .* a diverged"),
        ({"measured": ["a", "b"]}, TypeError, "measured must be numbers"),
        ({"measured": [True, False]}, TypeError, "got bool; of booleans, kind='share'"),
        ({"measured": [1, 0, 1], "kind": "share"}, TypeError, "'learns': successes must be booleans, .*, got int64"),
        ({"measured": [0.5, 1.5], "kind": "correlation"}, ValueError, "'learns': correlations lie between .* got 1.5"),
        ({"measured": [0.5, -1.5], "kind": "ratio", "above": 1}, ValueError, "'learns': ratios must be positive, got"),
        (
            {"kind": "median"},
            ValueError,
            "kind must be one of 'mean', 'fraction', 'share', 'correlation', 'ratio'",
        ),
        ({"above": None}, ValueError, "give one of above=, below= and within=, got none"),
        ({"below": 1}, ValueError, r"give one of above=, below= and within=, got \{'above': 0, 'below': 1\}"),
        ({"above": float("nan")}, ValueError, "above = nan must be finite"),
        ({"above": None, "within": (2, 1)}, ValueError, r"within = \(2, 1\) must be two numbers, the lower one first"),
        ({"above": None, "within": (1, 2, 3)}, ValueError, "must be two numbers"),
        ({"above": 2, "kind": "correlation", "measured": [0.5]}, ValueError, "possible for a correlation, -1 to 1"),
        ({"above": 0, "kind": "ratio"}, ValueError, "above = 0 must be finite and possible for a ratio"),
        ({"id": "It learns"}, ValueError, "claim id 'It learns' must be lower-case .*, such as 'the-network-learns'"),
        ({"text": " "}, ValueError, "it needs a text and a source"),
        ({"source": ""}, ValueError, "it needs a text and a source"),
        ({"each": " "}, ValueError, "each = ' ' must say what was counted"),
    ],
)
def test_what_is_refused_and_why(options, error, message):
    given = {"id": "learns", "text": "The network learns.", "source": "D1", "measured": [1.0, 2.0, 3.0], "above": 0}
    with pytest.raises(error, match=message):
        judge(**given | options)


# --- what it says


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({"above": 0.9995}, "more than 0.9995"),
        ({"below": 1234.5}, "less than 1,234.5"),
        ({"below": 1e-6}, "less than 10⁻⁶"),
        ({"above": 2.5e-7}, "more than 2.5×10⁻⁷"),
        ({"above": 2_000_000}, "more than 2,000,000"),
        ({"within": [1 / 1.2, 1.2]}, "between 0.833 and 1.2"),
        ({"above": 100_000 / 7}, "more than 14,286"),
        ({"within": [-0.028, 0]}, "between -0.028 and 0"),
    ],
)
def test_a_threshold_reads_as_it_was_given(needs, words):
    assert needs_in_words(needs) == words


@pytest.mark.parametrize(
    ("measured", "options", "evidence"),
    [
        ([0.3, 0.4, 0.38], {"unit": "epochs"}, "measured 0.36 [0.23, 0.49] epochs, needs more than 0 · 3 seeds"),
        ([0.36], {"unit": "epochs"}, "measured 0.36 epochs, needs more than 0 · 1 seed · too few seeds: a verdict"),
        ([True] * 7 + [False], {"kind": "share"}, "measured in 7 of 8 seeds, a share of 0.88 [0.47, 1.00], needs more"),
        ([True] * 7, {"kind": "share", "each": "networks"}, "measured in 7 of 7 networks, a share of 1.00"),
        ([-0.97, -0.99, -0.98], {"kind": "correlation", "below": -0.5}, "measured a correlation of -0.98"),
        ([2.0, 2.2, 2.1], {"kind": "ratio", "above": 1}, "measured a ratio of 2.1 [1.86, 2.36], needs more than 1 · 3"),
        ([1520, 1490, 1500], {"within": (1400, 1600)}, "measured 1,503 [1,465, 1,541], needs between 1,400 and 1,600"),
        ([2.0, 2.0, 2.0], {}, "measured 2 [2, 2], needs more than 0 · 3 seeds"),
        ([2.0, 2.0, 2.0], {"each": "points"}, "measured 2 [2, 2], needs more than 0 · 3 points"),
        ([2.0], {"each": "points"}, "measured 2, needs more than 0 · 1 point · too few points: a verdict"),
        (
            [1.0, 2.0, -0.5],
            {"each": "groups"},
            "measured 0.8 [-2.3, 4.0], needs more than 0 · 3 groups · too few groups:",
        ),
    ],
)
def test_the_evidence_says_what_was_measured_and_what_is_needed(measured, options, evidence):
    assert claim(measured, **options).evidence.startswith(evidence)


@given(
    kind=st.sampled_from(sorted(INTERVALS)),
    measured=hnp.arrays(np.float64, st.integers(1, 6), elements=st.floats(1e-9, 1)),
)
def test_no_infinity_reaches_a_reader_or_the_record(kind, measured):
    made = claim(measured > 0.5 if kind == "share" else measured, kind=kind, above=0.5)
    assert "inf" not in f"{made} {made.as_html()} {Claims((made,))._repr_html_()}"
    assert Claim.from_json(json.loads(json.dumps(made.as_json(), allow_nan=False))).evidence == made.evidence


def test_a_claim_is_recorded_with_all_that_its_verdict_rests_on():
    made = claim(torch.tensor([1.0, 2.0, 3.0], requires_grad=True), unit="nats", key=True, above=None, within=(-1, 9))
    assert json.loads(json.dumps(made.as_json())) == {
        **{"id": "learns", "text": "The network learns.", "source": "D1", "key": True, "kind": "mean", "unit": "nats"},
        **{"needs": {"within": [-1.0, 9.0]}, "measured": [1.0, 2.0, 3.0], "verdict": "supported", "each": "seeds"},
        "reason": "the whole 95 % interval meets the need",
        "interval": pytest.approx({"mean": 2.0, "low": -0.484, "high": 4.484, "n": 3, "confidence": 0.95}, abs=1e-3),
        "evidence": made.evidence,
    }


# --- how it is shown

WORDS = {(1.0, 1.1, 1.2): "✔ supported", (-1.0, -1.1, -1.2): "✘ not supported", (1.0,): "? inconclusive"}


@pytest.mark.parametrize(("measured", "words"), WORDS.items())
def test_the_verdict_is_a_word_and_a_symbol_never_a_color(measured, words):
    made = claim(measured)
    soup = BeautifulSoup(made.as_html(), "html.parser")
    assert (soup.strong.text, soup.cite.text, soup.small.text) == (words, "(D1)", made.evidence)
    assert soup.div["id"] == "claim-learns"
    assert str(made).startswith(words)
    assert not re.search(r"(?<!-)color|background|#[0-9a-fA-F]{3}", made.as_html())


def test_a_notebook_shows_html_once(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append((bundle, raw)))
    made = claim([1.0, 1.1, 1.2])
    made.show()
    assert shown == [({"text/html": made.as_html(), "text/plain": str(made)}, True)]
    assert DisplayFormatter().format(made) == ({}, {})


def test_claims_are_escaped():
    texts = {"text": "a < b & <b>c</b>", "source": "<i>D1</i>", "unit": "<script>x</script>"}
    made = judge("x", measured=[1.0, 1.1, 1.2], above=0, **texts)
    for page in (made.as_html(), Claims((made,))._repr_html_()):
        soup = BeautifulSoup(page, "html.parser")
        assert all(text in soup.text for text in texts.values())
        assert soup.find(["b", "i", "script"]) is None


def test_the_table_of_claims_is_accessible():
    claims = Claims(
        (claim([1.0, 1.1, 1.2]), judge("f", "It forgets.", source="D2", measured=[-1.0, -1.1, -1.2], above=0))
    )
    data, _ = DisplayFormatter().format(claims)
    table = BeautifulSoup(data["text/html"], "html.parser").table
    assert table.caption.text == "Claims: 1 supported, 1 not supported, 0 inconclusive"
    assert [th["scope"] for th in table.thead.find_all("th")] == ["col"] * 4
    rows = table.tbody.find_all("tr")
    assert [row.find("th")["scope"] for row in rows] == ["row", "row"]
    assert [row.find("th").text for row in rows] == ["The network learns.", "It forgets."]
    assert [row.find("td").text for row in rows] == ["✔ supported", "✘ not supported"]
    assert not re.search(r"(?<!-)color|background", data["text/html"])
    assert data["text/plain"].count("\n") == 3


def test_no_claims_are_said_to_be_none():
    assert repr(Claims(())) == "No claims recorded."
    assert "No claims recorded." in Claims(())._repr_html_()
