"""Many small dense networks on one core: `fit` against what one would write in JAX."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from labutils import functions, fused, models, training
from tests.benchmarks import Row, side_by_side

PEERS = ("jax",)
LR, WEIGHT_DECAY = 4e-4, 1e-4


def rows() -> Iterator[Row]:
    """Yield one row a network; about half a minute each."""
    if importlib.util.find_spec("jax") is None:
        print("(no rows against jax: pip install -e '.[bench]')", flush=True)
        return
    with one_core():
        for name in ("fit-0", "fit-1", "fit-2", "d1-deep"):
            yield against_jax(name)


def against_jax(name: str, k: int = 64) -> Row:
    """Training k networks on 300 points, one full batch a step: time in JAX, compiled before, over that of `fit`."""
    x, y = functions.sample("sinc", 300, -1, 1)
    networks = [models.build(name, seed=s) for s in range(k)]
    count = models.count_parameters(networks[0])
    steps = next(n for n in itertools.count(100, 50) if fused.pays(k * count, len(x) * n, n))  # long enough for it

    def ours() -> None:
        training.fit(
            networks, (x, y), epochs=steps, lr=LR, weight_decay=WEIGHT_DECAY, optimizer="adam", loss="mse",
            evaluate_every=0, progress=False,
        )  # fmt: skip

    ratio = side_by_side(in_jax(networks, x, y, steps), ours, rounds=3)
    return Row(f"JAX / fit, {name}", ratio, 1, True, f"{k} networks of {count} parameters, 300 points, Adam, one core")


def in_jax(networks: list[nn.Sequential], x: torch.Tensor, y: torch.Tensor, steps: int) -> Callable[[], object]:
    """The same training as one compiled program: `jit` of a `scan` over Adam steps with `vmap(grad)`."""
    import jax
    import jax.numpy as jnp

    inputs, targets = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
    tanh = any(isinstance(layer, nn.Tanh) for layer in networks[0])
    each = [[jnp.asarray(p.detach().numpy()) for p in network.parameters()] for network in networks]
    start = [jnp.stack(parameters) for parameters in zip(*each, strict=True)]

    def loss(parameters: list) -> jax.Array:
        h, last = inputs, len(parameters) - 2
        for i in range(0, len(parameters), 2):
            h = h @ parameters[i].T + parameters[i + 1]
            if i < last:
                h = jnp.tanh(h) if tanh else jax.nn.leaky_relu(h)
        return jnp.mean((h - targets) ** 2)

    gradient = jax.vmap(jax.grad(loss))

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        p, m, v, t = state
        g, t = jax.tree.map(lambda g, p: g + WEIGHT_DECAY * p, gradient(p), p), t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        size, scale = LR / (1 - 0.9**t), 1 / (1 - 0.999**t)
        return (jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v * scale) + 1e-8), p, m, v), m, v, t), None

    nothing = [jnp.zeros_like(p) for p in start]
    run = jax.jit(lambda state: jax.lax.scan(step, state, None, length=steps)[0])
    return lambda: jax.block_until_ready(run((start, nothing, nothing, 0.0)))


@contextmanager
def one_core() -> Iterator[None]:
    """Keep torch, and the threads that JAX begins, on one core where the system can do that (Linux)."""
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)
