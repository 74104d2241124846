"""Publishing finished source runs: what is copied, what is refused, what it says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labs import cli, freshness, publish, runner
from labs.publish import Published
from labs.runner import LabsError
from labutils.files import layout
from tests.conftest import ROOT, TinyLab

DATA = {"name": "mnist", "fingerprint": "ab" * 32, "train": 60, "validation": 0, "test": 10}


@pytest.fixture
def lab(tiny_lab: TinyLab) -> TinyLab:
    tiny_lab.add("21_fit")
    tiny_lab.add("22_image")
    tiny_lab.name_runs({"21_fit": {"d1": {"n": 9}, "d2": {"n": 8}}, "22_image": {"d1": {}}})
    return tiny_lab


def picture(width: int = 64, *, noise: bool = False) -> bytes:
    """A PNG file: stripes, which any format makes small, or noise, which none does."""
    pixels = np.zeros((width, width, 3), np.uint8)
    pixels[::8] = 255
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def metrics_of(name: str, run: str, **more: Any) -> dict[str, Any]:
    return {
        "notebook": name,
        "run": run,
        "parameters": {"n": 9},
        "metrics": {"loss": [0.1, 1 / 3], "note": "see https://example.org/a/b, and/or 1/2"},
        "claims": [{"text": "It holds.", "interval": {"mean": 0.1234567890123456}}],
        "figures": [{"name": "fit", "file": "figures/fit.png", "alt": "A curve through its points."}],
        "provenance": {
            "labutils": "0.1.0",
            "data": [DATA | {"file": "/home/ann/lab data/mnist.npz"}, DATA | {"file": r"C:\lab\mnist.npz"}],
        },
        "time": {"started": "2026-11-20T10:00:00+00:00", "wall_seconds": 61.5},
    } | more


def finish(lab: TinyLab, label: str, metrics: dict[str, Any] | None = None, **record: Any) -> Path:
    """Put a finished result there, as the runner would leave it."""
    run = lab.run(label)
    folder = run.folder(lab.results)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "figures" / "fit.png").write_bytes(picture())
    (folder / "metrics.json").write_text(layout(metrics or metrics_of(run.notebook.name, run.name)))
    made = {"status": "done", "parameters": run.parameters, "stamp": freshness.stamp(lab.project, run), "data": []}
    made |= {"files": ["figures/fit.png", "metrics.json"], "seconds": 61.5, "error": None}
    (folder / "run.json").write_text(json.dumps(made | record))
    return folder


def choose(lab: TinyLab, *names: str, stale: bool = False) -> tuple[list[str], dict[str, str]]:
    runs, left_out = publish.choose(lab.project, lab.load(), names, lab.results, stale=stale)
    return [run.label for run in runs], left_out


def publish_all(lab: TinyLab, *names: str, stale: bool = False) -> list[Published]:
    runs, _ = publish.choose(lab.project, lab.load(), names, lab.results, stale=stale)
    return publish.publish(lab.project, runs, lab.results)


# --- What is published -------------------------------------------------------------------------------------------


def test_numbers_claims_figures_and_what_made_them_go_along_paths_do_not(lab: TinyLab) -> None:
    finish(lab, "21_fit:d1")
    [done] = publish_all(lab, "21:d1")
    assert done.path == lab.root / "book" / "results" / "21_fit" / "d1" / "metrics.json"
    text = done.path.read_text()
    kept, recorded = json.loads(text), metrics_of("21_fit", "d1")
    [figure] = kept.pop("figures")
    assert (figure["name"], figure["alt"]) == ("fit", "A curve through its points.")
    image = done.path.parent / figure["file"]
    np.testing.assert_array_equal(
        np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(io.BytesIO(picture())).convert("RGB"))
    )
    assert done.size == len(text.encode()) + image.stat().st_size
    assert "ann" not in text
    assert kept["provenance"].pop("data") == [DATA | {"file": "mnist.npz"}] * 2
    assert kept["provenance"].pop("made_by") == freshness.made_by(lab.results / "21_fit" / "d1")
    recorded.pop("figures")
    recorded["provenance"].pop("data")
    assert kept == recorded  # to the last digit


def test_figures_that_a_run_no_longer_has_go(lab: TinyLab) -> None:
    finish(lab, "21_fit:d1")
    publish_all(lab, "21:d1")
    finish(lab, "21_fit:d1", metrics_of("21_fit", "d1", figures=[]))
    [done] = publish_all(lab, "21:d1")
    assert [path.name for path in done.path.parent.rglob("*") if path.is_file()] == ["metrics.json"]


@pytest.mark.parametrize("noise", [False, True])
def test_a_picture_is_at_most_60_kb_large_and_loses_only_what_it_must(noise: bool) -> None:
    original = picture(500, noise=noise)
    suffix, content = publish.compress(original)
    before, after = (Image.open(io.BytesIO(one)).convert("RGB") for one in (original, content))
    assert len(content) <= publish.LARGEST_FIGURE
    assert Image.open(io.BytesIO(content)).format == suffix.removeprefix(".").upper()
    assert (before.tobytes() == after.tobytes()) is not noise
    assert abs(after.width / after.height - 1) < 0.01


def test_it_tells_what_it_replaced(lab: TinyLab) -> None:
    finish(lab, "21_fit:d1")
    assert [publish_all(lab, "21:d1")[0].change for _ in range(2)] == ["new", "unchanged"]
    later = metrics_of("21_fit", "d1", time={"started": "2026-11-21T10:00:00+00:00"})
    finish(lab, "21_fit:d1", later)
    [other] = publish_all(lab, "21:d1")
    assert other.change == "replaced"
    assert json.loads(other.path.read_text())["time"] == later["time"] | {"wall_seconds": 61.5}, "of all its tries"


def test_a_notebook_or_nothing_means_every_finished_run(lab: TinyLab) -> None:
    for label in ("21_fit:d1", "22_image:d1"):
        finish(lab, label)
    assert choose(lab) == (["21_fit:d1", "22_image:d1"], {})
    assert choose(lab, "21") == (["21_fit:d1"], {})
    assert choose(lab, "21:d1", "21") == (["21_fit:d1"], {})
    finish(lab, "21_fit:d2", stamp={})
    chosen, left_out = choose(lab)
    assert chosen == ["21_fit:d1", "22_image:d1"]
    assert list(left_out) == ["21_fit:d2"]
    assert left_out["21_fit:d2"].startswith("it is stale (code, notebook, parameters, versions changed since)")


def test_stale_runs_only_on_request_and_the_file_says_so(lab: TinyLab) -> None:
    lab.add("21_fit", "from labutils import models\nmodels.build")
    finish(lab, "21_fit:d1")
    (lab.project.package / "models.py").write_text("def build(): ...")
    message = r"21_fit:d1 cannot be published: it is stale \(code models.build.* changed since\): labs run"
    with pytest.raises(LabsError, match=message):
        choose(lab, "21:d1")
    [done] = publish_all(lab, "21:d1", stale=True)
    [since] = json.loads(done.path.read_text())["provenance"]["changed_since"]
    assert since.startswith("code models.build")
    lab.add("21_fit", "print('more')")
    with pytest.raises(LabsError, match=r"notebook changed since\): labs run 21_fit:d1$"):
        choose(lab, "21:d1", stale=True)


# --- What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["21:quick"], "21_fit:quick cannot be published: the book shows quick runs by itself"),
        (["21:d1-custom-0123abcd"], "has parameters of its own: name them in notebooks/runs.yaml"),
        (["21:d1"], "21_fit:d1 cannot be published: it is not run: labs run 21_fit:d1"),
        (["21:d3"], "no run of 21_fit 'd3'"),
        (["31"], "no notebook '31'"),
        (["21"], "no finished named run of 21 in"),
        ([], "no finished named run of any notebook in"),
    ],
)
def test_runs_that_are_not_fit(lab: TinyLab, names: list[str], message: str) -> None:
    with pytest.raises(LabsError, match=message):
        choose(lab, *names)


def test_failed_runs(lab: TinyLab) -> None:
    finish(lab, "21_fit:d1", status="failed", error={"error": "ValueError: no"})
    with pytest.raises(LabsError, match=r"it failed \(ValueError: no\): labs run 21_fit:d1"):
        choose(lab, "21:d1", stale=True)
    with pytest.raises(LabsError, match=r"no finished named run of 21 in .*\n    21_fit:d1: it failed"):
        choose(lab, "21")


def test_results_that_are_gone_or_of_another_run(lab: TinyLab) -> None:
    folder = finish(lab, "21_fit:d1")
    (folder / "metrics.json").unlink()
    with pytest.raises(LabsError, match=r"stale \(result metrics.json changed since\)"):
        choose(lab, "21:d1", stale=True)
    finish(lab, "21_fit:d1", files=[])
    for name, message in {"figures/fit.png": "its figure .* is missing", "metrics.json": "recorded nothing"}.items():
        (folder / name).unlink()
        with pytest.raises(LabsError, match=message):
            publish_all(lab, "21:d1")
    finish(lab, "21_fit:d1", metrics_of("21_fit", "d2"))
    with pytest.raises(LabsError, match="is that of 21_fit:d2, not of 21_fit:d1"):
        publish_all(lab, "21:d1")


@pytest.mark.parametrize("path", ["/home/ann/data", "~/data", "~/lab/data", "C:\\lab\\data", "from /tmp/x.npz"])
def test_paths_of_the_machine_are_named(lab: TinyLab, path: str) -> None:
    finish(lab, "21_fit:d1", metrics_of("21_fit", "d1", parameters={"folders": [path]}))
    with pytest.raises(LabsError, match="parameters, folders holds a path of this machine"):
        publish_all(lab, "21:d1")


def test_too_much_names_what_is_big_and_writes_nothing(lab: TinyLab) -> None:
    finish(lab, "21_fit:d1")
    finish(lab, "21_fit:d2", metrics_of("21_fit", "d2", metrics={"curves": [0.25] * 20_000, "loss": [0.5] * 100}))
    with pytest.raises(LabsError) as caught:
        publish_all(lab, "21")
    told = str(caught.value)
    assert "21_fit:d2 cannot be published: its metrics take 121." in told
    assert "of at most 100 kB (most of it 'curves')" in told
    assert "Let the notebook record" in told
    assert not publish.folder(lab.project).exists()


def test_a_write_that_fails_leaves_the_earlier_file(lab: TinyLab, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(lab, "21_fit:d1")
    [done] = publish_all(lab, "21:d1")
    before = done.path.read_bytes()
    finish(lab, "21_fit:d1", metrics_of("21_fit", "d1", metrics={"loss": 2.0}))

    def no_room(*paths: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("labutils.files.os.replace", no_room)
    with pytest.raises(OSError, match="no space left"):
        publish_all(lab, "21:d1")
    assert done.path.read_bytes() == before
    assert sorted(path.name for path in done.path.parent.iterdir()) == ["figures", "metrics.json"]


# --- The command -------------------------------------------------------------------------------------------------


def test_the_command(lab: TinyLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runner, "PACKAGE", lab.project.package)
    monkeypatch.chdir(lab.root)

    def labs(*words: str) -> SimpleNamespace:
        code = cli.main(["publish", *words])
        written = capsys.readouterr()
        return SimpleNamespace(code=code, out=written.out, err=written.err)

    told = labs("21:d1")
    assert (told.code, told.out) == (2, "")
    assert told.err == "labs: 21_fit:d1 cannot be published: it is not run: labs run 21_fit:d1\n"
    finish(lab, "21_fit:d1")
    finish(lab, "21_fit:d2", stamp={})
    told = labs("21")
    assert (told.code, told.err) == (0, "")
    first, second = told.out.splitlines()
    assert first.startswith("21_fit:d1: book/results/21_fit/d1/metrics.json (")
    assert first.endswith(" kB), new")
    assert second.startswith("21_fit:d2: not published, it is stale (code, ")
    assert labs("21:d1").out.endswith("unchanged\n")
    finish(lab, "21_fit:d1", metrics_of("21_fit", "d1", metrics={}))
    assert labs("21:d1").out.endswith("replaced\n")
    moved = lab.root / "elsewhere"
    lab.results.rename(moved)
    assert labs("21:d1").code == 2
    assert labs("21:d1", "--out", str(moved)).code == 0


# --- What is there -----------------------------------------------------------------------------------------------


def test_what_is_published_is_small_has_no_paths_and_belongs_to_a_named_run() -> None:
    notebooks = runner.load_notebooks(runner.Project(ROOT))
    paths = sorted((ROOT / "book" / "results").glob("*/*/metrics.json"))
    assert paths
    for path in paths:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        assert path.parts[-3:-1] == (metrics["notebook"], metrics["run"])
        assert metrics["run"] in notebooks[metrics["notebook"]].runs
        assert path.stat().st_size <= publish.LARGEST
        found = [text for _, text in publish._texts(metrics) if publish._MACHINE_PATH.search(text)]
        assert found == []
        files = {file for file in path.parent.rglob("*") if file.is_file() and file != path}
        assert all(file.stat().st_size <= publish.LARGEST_FIGURE for file in files)
        assert files == {path.parent / figure["file"] for figure in metrics["figures"]}
