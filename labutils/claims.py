"""Claims: a sentence that somebody states, what was measured for it, and the verdict that follows.

A claim is judged from one measured value a seed, against what it needs: a value above or below a threshold, or within
two. The verdict comes from the 95 % interval that fits the kind of number, and is never written by hand::

    mean         Student's t interval for the mean
    fraction     the same, within 0 to 1: of accuracies, say
    share        the exact (Clopper-Pearson) interval for the share of seeds in which something happens
    correlation  Fisher's z: the t interval of atanh, taken back; as a mean, within -1 to 1, where one is -1 or 1
    ratio        the t interval of the logarithms, taken back: a geometric mean

*Supported* means that the whole interval meets the need, *not supported* that no part of it does, and *inconclusive*
anything else. With three to five seeds the t interval of skewed values is too narrow; more seeds are the remedy.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import floor, inf, isfinite, log10
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from labutils.statistics import INTERVALS, Interval, Kind, as_array, seeds_needed, three_digits

Verdict = Literal["supported", "not supported", "inconclusive"]

SYMBOLS: dict[Verdict, str] = {"supported": "✔", "not supported": "✘", "inconclusive": "?"}
FEWEST_SEEDS = 3
MANY_SEEDS = 100  # where so many would not decide, it is the effect that is small, not the number of seeds
SLUG = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")

_ROUNDING = 8 * float(np.finfo(np.float64).eps)
_RANGE: dict[Kind, tuple[float, float]] = {
    "mean": (-inf, inf),
    "fraction": (0.0, 1.0),
    "share": (0.0, 1.0),
    "correlation": (-1.0, 1.0),
    "ratio": (np.finfo(np.float64).tiny, inf),
}
_LEFT = 'style="text-align: left; vertical-align: top"'


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict; made by `judge`, whose arguments the attributes repeat.

    Attributes:
        verdict: "supported", "not supported" or "inconclusive".
        reason: Why this verdict; of an inconclusive one, whether more seeds would help, and about how many.
        unit: Unit of the measured values, or what they are.
        needs: {"above": number}, {"below": number} or {"within": (low, high)}.
        interval: The estimate over the seeds.
        each: What has one measured value each: "seeds" mostly.
    """

    id: str
    text: str
    source: str
    verdict: Verdict
    reason: str
    kind: Kind
    unit: str
    needs: Mapping[str, float | tuple[float, float]]
    measured: tuple[float | bool, ...]
    interval: Interval
    key: bool = False
    each: str = "seeds"

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Return a claim as metrics.json holds it."""
        interval = {"low": -inf, "high": inf} | {k: v for k, v in entry["interval"].items() if v is not None}
        own = {name: value for name, value in entry.items() if name != "evidence"}
        return cls(**own | {"interval": Interval(**interval), "measured": tuple(entry["measured"])})

    def as_json(self) -> dict[str, Any]:
        """Return the claim as metrics.json holds it: its attributes, and the evidence in words."""
        ends = {name: end if isfinite(end := getattr(self.interval, name)) else None for name in ("low", "high")}
        return asdict(self) | {"interval": asdict(self.interval) | ends, "evidence": self.evidence}

    @property
    def evidence(self) -> str:
        """What was measured, beside what the claim needs.

        Example:
            >>> judge("a", "It grows.", source="D1", measured=[1.0, 2.0, 1.5], above=0, unit="epochs").evidence
            'measured 1.5 [0.3, 2.7] epochs, needs more than 0 · 3 seeds'
        """
        n = self.interval.n
        end = f" · {n} {self.each if n != 1 else self.each.removesuffix('s')}"
        if self.kind == "share":
            found = f"in {sum(self.measured)} of {n} {self.each}, a share of {_estimate(self)}"
            end = ""
        else:
            found = f"{_estimate(self)} {self.unit}".rstrip()
            if self.kind == "correlation":
                found = f"a correlation of {found}"
            elif self.kind == "ratio" and not self.unit.startswith("times "):
                found = f"a ratio of {_estimate(self)}" + (f" ({self.unit})" if self.unit else "")
        why = f" · {self.reason}" if self.verdict == "inconclusive" else ""
        return f"measured {found}, needs {needs_in_words(self.needs)}{end}{why}"

    def __str__(self) -> str:
        return f"{SYMBOLS[self.verdict]} {self.verdict}: {self.text} ({self.source})\n  {self.evidence}"

    def __repr__(self) -> str:
        return f"<Claim {self.id}: {self.verdict}>"

    def _ipython_display_(self) -> None:
        """Show nothing: a claim that ends a cell has shown itself when it was made."""

    def as_html(self) -> str:
        """Return the claim as a box of HTML, without colors of its own: it takes those of the page, light or dark."""
        verdict, text, source, evidence = map(
            html.escape, (f"{SYMBOLS[self.verdict]} {self.verdict}", self.text, self.source, self.evidence)
        )
        return (
            f'<div class="claim" id="claim-{html.escape(self.id)}" style="border: 1px solid; border-left-width: 5px; '
            'border-radius: 4px; padding: 0.4em 0.8em; margin: 0.3em 0; max-width: 45em">'
            f"<strong>{verdict}</strong>: {text} <cite>({source})</cite><br><small>{evidence}</small></div>"
        )

    def show(self) -> None:
        """Show the claim: as a box in a notebook, as two lines elsewhere."""
        show(self.as_html(), str(self))


@dataclass(frozen=True)
class Claims:
    """Claims as one table, as a notebook displays it.

    Example:
        >>> Claims(())
        No claims recorded.
    """

    claims: tuple[Claim, ...]

    def __len__(self) -> int:
        return len(self.claims)

    def __iter__(self) -> Iterator[Claim]:
        return iter(self.claims)

    def __repr__(self) -> str:
        return "\n".join(map(str, self.claims)) or "No claims recorded."

    def _repr_html_(self) -> str:
        if not self.claims:
            return f"<p>{self!r}</p>"
        rows = []
        for claim in self.claims:
            verdict = f"{SYMBOLS[claim.verdict]} {claim.verdict}"
            cells = [html.escape(text) for text in (verdict, claim.text, claim.source, claim.evidence)]
            rows.append(
                f'<tr><td {_LEFT}><strong>{cells[0]}</strong></td><th scope="row" {_LEFT}>{cells[1]}</th>'
                f"<td {_LEFT}>{cells[2]}</td><td {_LEFT}>{cells[3]}</td></tr>"
            )
        counts = [f"{sum(claim.verdict == verdict for claim in self.claims)} {verdict}" for verdict in SYMBOLS]
        heads = [f'<th scope="col" {_LEFT}>{head}</th>' for head in ("Verdict", "Claim", "Source", "Evidence")]
        return (
            f"<table><caption>Claims: {', '.join(counts)}</caption><thead><tr>{''.join(heads)}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )


def judge(
    id: str,
    text: str,
    *,
    source: str,
    measured: ArrayLike,
    above: float | None = None,
    below: float | None = None,
    within: tuple[float, float] | None = None,
    unit: str = "",
    kind: Kind = "mean",
    key: bool = False,
    each: str = "seeds",
) -> Claim:
    """Decide a claim from one measured value a seed.

    Fewer than 3 seeds decide nothing, nor does a difference from the threshold of the size of rounding errors.

    Args:
        id: A name for it: lower-case words joined by "-" or "_".
        text: The claim as a sentence that stands alone.
        source: Who says so, such as "D2 1-1".
        measured: One value a seed, shape (seeds,): numbers; for "share", booleans; for "ratio", positive numbers; for
            "correlation", numbers from -1 to 1.
        above: The claim needs more than this. A share needs more than 0.5 unless told otherwise.
        below: The claim needs less than this.
        within: The claim needs a value from the first to the second, ends included.
        unit: Unit of the values, such as "epochs", or a few words that say what they are.
        kind: What kind of number was measured; it decides the interval.
        key: Whether it answers the question of the notebook.
        each: What has one value each, in the plural, where it is not the seeds.

    Raises:
        ValueError: If a text is empty, the id no slug, measured not one finite value a seed or outside the range of
            its kind, or not exactly one of above, below and within is given, in the range of the kind.
        TypeError: If measured are not numbers, or not booleans for a share.

    Example:
        >>> print(judge("deep-first", "Deep networks are first.", source="D1 1-1", measured=[0.5, 1.5, -0.2], above=0))
        ? inconclusive: Deep networks are first. (D1 1-1)
          measured 0.6 [-1.5, 2.7], needs more than 0 · 3 seeds · too few seeds: about 11 would decide at this spread
    """
    if not SLUG.fullmatch(id):
        such_as = _slug(" ".join(text.split()[:4]))
        raise ValueError(f"claim id {id!r} must be lower-case words joined by - or _, such as {such_as!r}")
    if not text.strip() or not source.strip():
        raise ValueError(f"claim {id!r}: it needs a text and a source, got {text!r} and {source!r}")
    if not each.strip():
        raise ValueError(f"claim {id!r}: each = {each!r} must say what was counted, such as 'seeds' or 'points'")
    if kind not in INTERVALS:
        raise ValueError(f"claim {id!r}: kind must be one of {', '.join(map(repr, INTERVALS))}, got {kind!r}")
    values = as_array(measured)
    if kind != "share":
        if values.dtype.kind not in "fiu":
            hint = "; of booleans, kind='share'" if values.dtype == np.bool_ else ""
            raise TypeError(f"claim {id!r}: measured must be numbers, got {values.dtype}{hint}")
        values = values.astype(np.float64)
    needs = _needs(id, above, below, within, kind)
    try:
        interval = INTERVALS[kind](values)  # knows what its kind of number can be
    except (TypeError, ValueError) as error:
        raise type(error)(f"claim {id!r}: {error}") from None
    verdict, reason = _decide(kind, values, interval, needs, each)
    text, source, unit = text.strip(), source.strip(), unit.strip()
    return Claim(id, text, source, verdict, reason, kind, unit, needs, tuple(values.tolist()), interval, key, each)


def _slug(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", text.lower())) or "claim"


def needs_in_words(needs: Mapping[str, Any]) -> str:
    """Return what a claim needs, as people say it.

    Example:
        >>> needs_in_words({"above": 0.5}), needs_in_words({"within": [1 / 1.2, 1.2]})
        ('more than 0.5', 'between 0.833 and 1.2')
    """
    [(which, at)] = needs.items()
    if which == "within":
        return f"between {_short(at[0])} and {_short(at[1])}"
    return f"{'more' if which == 'above' else 'less'} than {_short(at)}"


def _short(number: float) -> str:
    """Write a threshold as people do: as it was given where six digits tell it, else with three at least."""
    if float(f"{number:g}") == number or float(number).is_integer():
        told = f"{number:,g}" if abs(number) < 1e6 else f"{number:,.0f}"
        return three_digits(number) if "e" in told else told
    return three_digits(number)


def show(as_html: str, as_text: str) -> None:
    """Show HTML in a notebook, text elsewhere.

    Example:
        >>> show("<strong>done</strong>", "done")
        done
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None:
        print(as_text)
    else:
        from IPython.display import display

        display({"text/html": as_html, "text/plain": as_text}, raw=True)


def _needs(
    id: str, above: float | None, below: float | None, within: tuple[float, float] | None, kind: Kind
) -> dict[str, float | tuple[float, float]]:
    """Return what the claim needs, once it is exactly one thing that the kind can meet."""
    given = {k: v for k, v in {"above": above, "below": below, "within": within}.items() if v is not None}
    if kind == "share" and not given:
        given = {"above": 0.5}
    if len(given) != 1:
        raise ValueError(f"claim {id!r}: give one of above=, below= and within=, got {given or 'none'}")
    [(which, at)] = given.items()
    edges = [float(edge) for edge in (at if which == "within" else (at,))]
    low, high = _RANGE[kind]
    if not all(isfinite(edge) and low <= edge <= high for edge in edges):
        raise ValueError(f"claim {id!r}: {which} = {at} must be finite and possible for a {kind}, {low:g} to {high:g}")
    if which == "within" and not (len(edges) == 2 and edges[0] < edges[1]):
        raise ValueError(f"claim {id!r}: within = {at} must be two numbers, the lower one first")
    return {which: tuple(edges) if which == "within" else edges[0]}


def _decide(
    kind: Kind, values: np.ndarray, interval: Interval, needs: Mapping[str, Any], each: str
) -> tuple[Verdict, str]:
    """Return verdict and reason."""
    [(which, at)] = needs.items()
    edges = np.array(at if which == "within" else [at])
    scale = np.maximum(np.abs(edges), np.abs(values).max())
    rounding = _ROUNDING * np.where(edges == 0, 1.0, scale)
    if interval.n < FEWEST_SEEDS:
        return "inconclusive", f"too few {each}: a verdict needs at least {FEWEST_SEEDS}"
    beyond, short = interval.low > edges + rounding, interval.high < edges - rounding
    if which == "within":
        inside = interval.low >= edges[0] - rounding[0] and interval.high <= edges[1] + rounding[1]
        outside = short[0] or beyond[1]
    else:
        inside, outside = (beyond[0], short[0]) if which == "above" else (short[0], beyond[0])
    if inside:
        return "supported", "the whole 95 % interval meets the need"
    if outside:
        return "not supported", "no part of the 95 % interval meets the need"
    if (np.abs(values[:, None] - edges) <= rounding).all(axis=0).any():
        return "inconclusive", "the effect is at the threshold: all values equal it, but for rounding"
    needed = [seeds_needed(values, edge, kind) for edge in edges]
    if None in needed:
        return "inconclusive", f"the effect is at the threshold: more {each} would not decide at this spread"
    n = max(interval.n + 1, *needed)
    if n > MANY_SEEDS:
        about = f"{round(n, 1 - floor(log10(n))):,}"
        return "inconclusive", f"the effect is near the threshold: about {about} {each} would decide at this spread"
    return "inconclusive", f"too few {each}: about {n} would decide at this spread"


def _estimate(claim: Claim) -> str:
    """Return the estimate with its interval, to the digits that the interval's width leaves meaning to."""
    interval = claim.interval
    ends = [interval.low, interval.high] if interval.n > 1 or claim.kind == "share" else []
    half = (interval.high - interval.low) / 2 if ends else 0.0
    if claim.kind != "ratio" and half > 0 and (decimals := 1 - floor(log10(half))) <= 6:
        middle, *ends = (f"{number:z,.{max(decimals, 0)}f}" for number in (interval.mean, *ends))
    else:  # no width, or ends that may be a factor of thousands apart
        middle, *ends = map(three_digits, (interval.mean, *ends))
    return f"{middle} [{', '.join(ends)}]" if ends else middle
