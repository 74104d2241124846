"""Similarity of representations against matrix products alone and against public libraries.

The libraries (ckatorch, torch-cka) come with `pip install -e '.[bench]'`; their rows are left out without.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from labutils import similarity
from tests.benchmarks import Row, side_by_side

PEERS = ("ckatorch", "torch_cka")
N, WIDTH, LAYERS, BATCH = 10_000, 512, 6, 500
SIZES = f"{LAYERS} × {LAYERS} layers, n = {N:,}, width {WIDTH}, float32"


def rows() -> Iterator[Row]:
    """Yield one row a comparison; the slow libraries take minutes."""
    a, b = representations(0), representations(1)
    yield products_alone(a, b)
    yield svcca_per_pair(a, b)
    yield target_alignment()
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        print(f"(no rows against {', '.join(missing)}: pip install -e '.[bench]')", flush=True)
        return
    yield full_libraries(a, b)
    yield minibatch_torch_cka(a, b)


def representations(seed: int) -> dict[str, Tensor]:
    """Six related ReLU layers over the same examples, of a random network with the seed's weights."""
    h = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(100))
    weights = torch.Generator().manual_seed(seed)
    found = {}
    for layer in range(LAYERS):
        h = (h @ torch.randn(WIDTH, WIDTH, generator=weights) * (2 / WIDTH) ** 0.5).relu()
        found[str(layer)] = h
    return found


def products_alone(a: dict[str, Tensor], b: dict[str, Tensor]) -> Row:
    """The matrix products of linear CKA's definition, 36 of two layers, 12 of a layer with itself, over all of it."""

    def products() -> None:
        for x in a.values():
            for y in b.values():
                x.T @ y
        for x in (*a.values(), *b.values()):
            x.T @ x

    ratio = side_by_side(products, lambda: similarity.similarity_matrix(a, b), rounds=5)
    return Row("its matrix products alone / linear CKA of all pairs", ratio, 0.77, True, SIZES, "limit")


def svcca_per_pair(a: dict[str, Tensor], b: dict[str, Tensor]) -> Row:
    """SVCCA over the usual way, two SVDs for each pair; timed for one pair, as all of them take the same."""

    def directions(x: Tensor) -> Tensor:
        u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        return u[:, : int((s.square().cumsum(0) / s.square().sum() < 0.99).sum()) + 1]

    def pair(x: Tensor, y: Tensor) -> float:
        return torch.linalg.svdvals(directions(x).T @ directions(y)).mean().item()

    ours = similarity.similarity_matrix(a, b, "svcca")
    assert np.isclose(ours[2, 3], pair(a["2"], b["3"]), atol=1e-4), "the two ways differ"
    ratio = side_by_side(lambda: pair(a["2"], b["3"]), lambda: similarity.similarity_matrix(a, b, "svcca"), rounds=3)
    return Row("a per-pair SVD / SVCCA of all pairs", LAYERS**2 * ratio, 5, True, f"{SIZES}; one pair timed, × 36")


def target_alignment() -> Row:
    """The one large matrix product of a wide layer's alignment with labels, over all of it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 2000, generator=generator)
    y = torch.randint(0, 10, (N,), generator=generator)
    ratio = side_by_side(lambda: x.T @ x, lambda: similarity.target_alignment(x, y), rounds=5)
    note = f"n = {N:,}, width 2,000, 10 classes, float32"
    return Row("XᵀX alone / target alignment", ratio, 1, True, note, "limit")


class Layers(nn.Module):
    """A network whose layers' outputs are given: only the libraries' own work is timed."""

    def __init__(self, outputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.outputs = outputs
        self.layers = nn.ModuleDict({name: nn.Identity() for name in outputs})

    def forward(self, index: Tensor) -> Tensor:
        for name, layer in self.layers.items():
            h = layer(self.outputs[name][index])
        return h


def full_libraries(a: dict[str, Tensor], b: dict[str, Tensor]) -> Row:
    """Linear CKA of all pairs against the fastest that the two libraries offer for it, at any precision of theirs.

    ckatorch has two ways: all examples in one kernel (timed for one pair: all take the same), and minibatches.
    torch-cka has minibatches only. The minibatch values are estimates, which is in their favor.
    """
    from ckatorch import cka_base, cka_batch

    stacked = [{k: v.view(-1, BATCH, WIDTH) for k, v in layers.items()} for layers in (a, b)]

    def batches() -> list[list[float]]:
        return [[cka_batch(x, y).item() for y in stacked[1].values()] for x in stacked[0].values()]

    seconds = {"ckatorch, minibatches": _seconds(batches), "torch-cka": _seconds(lambda: _torch_cka(a, b))}
    few = [{k: v[:1000] for k, v in layers.items()} for layers in (a, b)]
    ours = similarity.similarity_matrix(*few)
    theirs = [[cka_base(x, y).item() for y in few[1].values()] for x in few[0].values()]
    assert np.allclose(ours, theirs, atol=1e-5), "labutils and ckatorch differ"
    debiased = [[cka_base(x, y, unbiased=True).item() for y in few[1].values()] for x in few[0].values()]
    assert np.allclose(similarity.similarity_matrix(*few, debiased=True), debiased, atol=1e-5)
    with contextlib.suppress(RuntimeError):  # its kernels take gigabytes
        pair = _seconds(lambda: cka_base(a["2"], b["3"]))
        seconds["ckatorch, all examples"] = LAYERS**2 * pair
    best = min(seconds, key=seconds.__getitem__)
    mine = statistics.median(_seconds(lambda: similarity.similarity_matrix(a, b)) for _ in range(5))
    others = ", ".join(f"{name} {value / mine:.0f}×" for name, value in seconds.items())
    return Row("fastest public library / linear CKA of all pairs", seconds[best] / mine, 2, True, f"{SIZES}; {others}")


def minibatch_torch_cka(a: dict[str, Tensor], b: dict[str, Tensor]) -> Row:
    """Minibatch CKA against torch-cka on the same batches, values included."""
    result = np.zeros(0)

    def ours() -> None:
        nonlocal result
        running = similarity.MinibatchCKA()
        for start in range(0, N, BATCH):
            part = slice(start, start + BATCH)
            running.update({k: v[part] for k, v in a.items()}, {k: v[part] for k, v in b.items()})
        result = running.matrix()

    ours()
    theirs = _torch_cka(a, b)
    # torch-cka's diagonal-free kernels are float32 and not centered: it is right to about three digits here.
    assert np.allclose(result, theirs, atol=5e-3), f"labutils and torch-cka differ by {np.abs(result - theirs).max()}"
    ratio = side_by_side(lambda: _torch_cka(a, b), ours, rounds=3)
    return Row("torch-cka / minibatch CKA of all pairs", ratio, 5, True, f"{SIZES}, batches of {BATCH}")


def _torch_cka(a: dict[str, Tensor], b: dict[str, Tensor]) -> np.ndarray:
    from torch_cka import CKA

    names = [f"layers.{name}" for name in a]
    loader = DataLoader(TensorDataset(torch.arange(N)), batch_size=BATCH)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        compared = CKA(Layers(a), Layers(b), "a", "b", names, names)
        compared.compare(loader, loader)
    return compared.export()["CKA"].numpy()


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
