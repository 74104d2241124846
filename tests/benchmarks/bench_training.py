"""The training engine against the loops that everybody writes."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labutils import data, functions, models, training
from tests.benchmarks import Row, side_by_side


def rows() -> Iterator[Row]:
    """Yield one row a comparison."""
    for name in ("fit-0", "fit-1", "fit-2"):
        yield stack_against_loop(name)
    yield mnist_against_data_loader()
    yield cifar_against_bare_steps()
    yield memory_of_a_stack()


def stack_against_loop(name: str, k: int = 64, steps: int = 20) -> Row:
    """Training k tiny networks: time of a plain loop over networks, over that of one stack."""
    x, y = functions.sample("sinc", 300, -1, 1)
    stacked = [models.build(name, seed=s) for s in range(k)]
    single = models.build(name)
    optimizer = torch.optim.Adam(single.parameters(), 4e-4, weight_decay=1e-4)

    def loop() -> None:  # every network costs the same: one stands for all
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(single(x), y).backward()
            optimizer.step()

    def stack() -> None:
        training.fit(
            stacked, (x, y), epochs=steps, lr=4e-4, weight_decay=1e-4, optimizer="adam", loss="mse",
            evaluate_every=0, progress=False,
        )  # fmt: skip

    ratio = k * side_by_side(loop, stack)
    count = models.count_parameters(single)
    # fit-2 spends its time in the arithmetic of one wide layer, not in overhead that a stack could save.
    goal = 1 if name == "fit-2" else 10
    return Row(
        f"plain loop / stack, {name}", ratio, goal, True, f"{k} networks of {count} parameters, 300 points, Adam"
    )


def mnist_against_data_loader(n: int = 10_000, batch_size: int = 128) -> Row:
    """An epoch of the 269,322-parameter MLP: torchvision, transforms and a DataLoader, over `fit`."""
    data._torchvision_datasets()  # first: it lets torchvision load beside a torch without GPU operators
    from torchvision import datasets, transforms

    with tempfile.TemporaryDirectory() as folder:
        x, y = _write_mnist(Path(folder), n)
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)])
        usual_data = datasets.MNIST(folder, train=True, transform=transform)
        loader = torch.utils.data.DataLoader(usual_data, batch_size, shuffle=True)
        usual, ours = models.build("d1-mlp"), models.build("d1-mlp")
        optimizer = torch.optim.Adam(usual.parameters(), 1e-3)

        def usual_epoch() -> None:
            for images, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(usual(images), labels).backward()
                optimizer.step()

        def our_epoch() -> None:
            training.fit(
                ours, (x, y), epochs=1, batch_size=batch_size, lr=1e-3, optimizer="adam", evaluate_every=0,
                progress=False,
            )  # fmt: skip

        ratio = side_by_side(usual_epoch, our_epoch, rounds=5)
    return Row("DataLoader loop / fit, MNIST MLP", ratio, 3, True, f"{n:,} images, batch {batch_size}, Adam")


def cifar_against_bare_steps(n: int = 4_000, batch_size: int = 64) -> Row:
    """Training steps of cifar-1 on batches at rest, over an epoch of it with random crop and flip."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (n,), generator=generator)
    bare, ours = models.build("cifar-1"), models.build("cifar-1")
    optimizer = torch.optim.Adam(bare.parameters(), 4e-4, weight_decay=1e-4)
    batches = [(x[i : i + batch_size].clone(), y[i : i + batch_size]) for i in range(0, n, batch_size)]

    def bare_steps() -> None:
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(bare(images), labels).backward()
            optimizer.step()

    def our_epoch() -> None:
        training.fit(
            ours, (x, y), epochs=1, batch_size=batch_size, lr=4e-4, weight_decay=1e-4, optimizer="adam", augment=True,
            evaluate_every=0, progress=False,
        )  # fmt: skip

    ratio = side_by_side(bare_steps, our_epoch)
    note = f"{n:,} images, batch {batch_size}, crop and flip, Adam"
    return Row("bare steps / fit, cifar-1", ratio, 0.77, True, note, "limit")


def memory_of_a_stack(k: int = 32) -> Row:
    """k times one network's state, over the peak memory that training k networks adds, less their activations."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        added, state = pool.submit(_peak, k).result()
    note = f"{k} × d1-mlp, Adam, batch 128"
    return Row("state / peak memory less activations, stack", k * state / added, 0.77, True, note, "limit")


def _peak(k: int) -> tuple[float, int]:
    x, y = torch.randn(256, 784), torch.zeros(256, dtype=torch.int64)
    networks = [models.build("d1-mlp", seed=s) for s in range(k)]
    parameters = models.count_parameters(networks[0])
    options = {"batch_size": 128, "lr": 1e-3, "optimizer": "adam", "progress": False}
    training.fit(models.build("d1-mlp"), (x, y), epochs=1, **options)  # loads what loads once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _memory("VmRSS")
    training.fit(networks, (x, y), epochs=2, **options)
    own = k * parameters * 4  # the networks themselves, there already, count as state
    added = _memory("VmHWM") - before + own - k * _activation_bytes(networks[0], x[:128])
    return added, 4 * parameters * 4  # weights, gradients and two moments


def _memory(field: str) -> int:
    """Read the process's resident memory (VmRSS) or its peak (VmHWM) in bytes; Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def _activation_bytes(network: nn.Sequential, x: Tensor) -> int:
    total = 0
    for layer in network:
        x = layer(x)
        total += x.numel() * x.element_size()
    return total


def _write_mnist(folder: Path, n: int) -> tuple[Tensor, Tensor]:
    """Write noise in MNIST's own files, which is all that a timing needs; return it normalized."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = generator.integers(0, 10, n, dtype=np.uint8)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = np.array([0x803, n, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, n], ">i4").tobytes() + labels.tobytes())
    x = (torch.from_numpy(images).float().unsqueeze(1) / 255 - 0.1307) / 0.3081
    return x, torch.from_numpy(labels).long()
