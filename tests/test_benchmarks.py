"""The benchmarks' table: what is printed and kept, and the exit code. No time is judged here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from labs import pages
from tests.benchmarks import Row, __main__, side_by_side

FAST = Row("torch's / ours", 3.14159, 3, True, "n = 3")
SLOW = Row("ours, seconds", 61.0, 60, False, "n = 9", "clock")
Part = Callable[[], Iterator[Row]]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put other parts in the place of the real ones."""

    def put(**rows: Part) -> None:
        for name, function in rows.items():
            module = ModuleType(f"tests.benchmarks.bench_{name}")
            module.rows = function
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def nothing() -> Iterator[Row]:
        return iter(())

    put(by_hand=nothing, curvature=nothing, fused=nothing, similarity=nothing, training=nothing)
    sys.modules["tests.benchmarks.bench_similarity"].PEERS = ("json",)
    sys.modules["tests.benchmarks.bench_fused"].PEERS = ("json",)
    return put


def failing() -> Iterator[Row]:
    yield FAST
    raise MemoryError("too much")


def test_the_table_is_printed_and_kept(parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts(curvature=lambda: iter((FAST,)))
    assert __main__.main(["--out", str(tmp_path / "bench")]) == 0
    told = capsys.readouterr().out
    assert "| curvature | torch's / ours (n = 3) | peer | 3.14 | ≥ 3 | reached |\n" in told
    assert "1 of 1 goals reached" in told
    assert (tmp_path / "bench" / "benchmarks.md").read_text(encoding="utf-8").splitlines() == [
        line for line in told.splitlines() if not line.startswith("kept in")
    ]
    kept = json.loads((tmp_path / "bench" / "benchmarks.json").read_text(encoding="utf-8"))
    assert kept["rows"] == [
        {"part": "curvature", "name": "torch's / ours", "ratio": 3.142, "target": 3, "at_least": True}
        | {"note": "n = 3", "against": "peer", "reached": True}
    ]
    assert {"cpu", "cores", "memory_gib", "system", "threads", "load_before"} == kept["machine"].keys()
    assert {"python", "labutils", "torch", "numpy"} <= kept["versions"].keys()
    assert "**curvature**" in pages.benchmarks_table(kept)


def test_a_goal_that_is_missed_is_an_error(parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts(curvature=lambda: iter((FAST,)), training=lambda: iter((SLOW,)))
    assert __main__.main(["--out", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "| training | ours, seconds (n = 9) | clock | 61.00 s | ≤ 60 s | **MISSED** |\n" in told
    assert "1 of 2 goals reached" in told
    assert __main__.main(["curv", "--out", str(tmp_path)]) == 0


def test_a_part_that_fails_does_not_stop_the_others(parts, tmp_path: Path) -> None:
    parts(by_hand=failing, training=lambda: iter((FAST,)))
    assert __main__.main(["--out", str(tmp_path)]) == 1
    kept = json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))
    assert [row["part"] for row in kept["rows"]] == ["by_hand", "training"]
    assert kept["failed"] == {"by_hand": "MemoryError: too much"}
    assert "by_hand failed: MemoryError: too much" in (tmp_path / "benchmarks.md").read_text(encoding="utf-8")


def test_only_a_whole_run_is_published(parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    monkeypatch.setattr(__main__, "PUBLISHED", tmp_path / "benchmarks.json")
    where = ["--publish", "--out", str(tmp_path / "bench")]
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["curvature", *where])
    parts(curvature=failing)
    assert __main__.main(where) == 1
    assert not (tmp_path / "benchmarks.json").exists()
    parts(curvature=lambda: iter((SLOW,)))
    assert __main__.main(where) == 1  # a goal that is missed is published as such
    kept = (tmp_path / "benchmarks.json").read_text(encoding="utf-8")
    assert kept == (tmp_path / "bench" / "benchmarks.json").read_text(encoding="utf-8")
    monkeypatch.setattr(sys.modules["tests.benchmarks.bench_similarity"], "PEERS", ("no_such_peer",))
    with pytest.raises(SystemExit, match="2"):
        __main__.main(where)


def test_both_sides_take_turns() -> None:
    calls: list[str] = []
    assert side_by_side(lambda: calls.append("a"), lambda: calls.append("b"), rounds=3) > 0
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
