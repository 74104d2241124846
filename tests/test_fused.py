"""The compiled pass against PyTorch's own layers, losses and autograd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from labutils import engine, functions, fused, models, training

RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5}  # to the largest number that is compared
LAYERS = (
    *(layer for layer in models.ACTIVATIONS.values()),
    lambda: nn.LeakyReLU(0.3),
    lambda: nn.LeakyReLU(-0.5),
    lambda: nn.Softplus(2.5),
    nn.Flatten,
)


def flat(networks: list[nn.Module]) -> Tensor:
    """The networks' weights as rows."""
    return torch.stack([torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks])


def by_torch(network: nn.Module, x: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, loss and gradient of one network."""
    outputs = network(x)
    if loss == "cross_entropy":
        value = F.cross_entropy(outputs, y)
    else:
        value = F.mse_loss(outputs, y if y.is_floating_point() else F.one_hot(y, outputs.shape[1]).to(outputs))
    gradients = torch.autograd.grad(value, list(network.parameters()))
    return outputs.detach(), value.detach(), torch.cat([g.flatten() for g in gradients])


def assert_close(got: Tensor, expected: Tensor, relative: float) -> None:
    assert (got - expected).abs().max() <= relative * expected.abs().max().clamp(min=1e-30)


@st.composite
def networks(draw: st.DrawFn) -> list[nn.Sequential]:
    """A few networks of one random architecture: dense layers with or without bias, any activations between them."""
    widths = draw(st.lists(st.integers(1, 19), min_size=2, max_size=5))
    biases = [draw(st.booleans()) for _ in widths[1:]]
    between = [draw(st.lists(st.sampled_from(LAYERS), max_size=2)) for _ in widths]
    dtype = draw(st.sampled_from(list(RELATIVE)))
    torch.manual_seed(draw(st.integers(0, 2**31)))

    def build() -> nn.Sequential:
        layers = [make() for make in between[0]]
        for before, after, bias, makes in zip(widths[:-1], widths[1:], biases, between[1:], strict=True):
            layers += [nn.Linear(before, after, bias=bias), *(make() for make in makes)]
        return nn.Sequential(*layers).to(dtype)

    return [build() for _ in range(draw(st.integers(1, 3)))]


@settings(max_examples=150)
@given(
    networks(),
    st.integers(1, 700),
    st.sampled_from(["cross_entropy", "mse", "mse on labels"]),
    st.booleans(),
    st.booleans(),
)
def test_it_computes_what_autograd_does(nets: list[nn.Sequential], n: int, loss: str, own_x: bool, own_y: bool) -> None:
    k, weights, table = len(nets), flat(nets), fused.Pass(nets[0])
    linear = [layer for layer in nets[0] if isinstance(layer, nn.Linear)]
    features, outputs = linear[0].in_features, linear[-1].out_features
    x = torch.randn(*([k] if own_x else []), n, features, dtype=weights.dtype)
    lead = [k] if own_y else []
    y = torch.randn(*lead, n, outputs, dtype=weights.dtype) if loss == "mse" else torch.randint(outputs, (*lead, n))
    loss = loss.partition(" ")[0]
    out = torch.full_like(weights, torch.nan)

    losses, accuracies = table.losses_and_gradients(weights, x, y, loss, out=out, own=own_x)
    values = table.outputs(weights, x, own=own_x)

    each = [by_torch(net, x[i] if own_x else x, y[i] if own_y else y, loss) for i, net in enumerate(nets)]
    relative = RELATIVE[weights.dtype]
    for i, (expected, value, gradient) in enumerate(each):
        assert_close(values[i], expected, relative)
        assert_close(losses[i], value.double(), relative)
        assert_close(out[i], gradient, relative)
    if y.is_floating_point():
        assert accuracies.isnan().all()
    else:
        torch.testing.assert_close(accuracies, (values.argmax(2) == y).double().mean(1))


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("layer", models.ACTIVATIONS)
def test_activations_are_right_from_tiny_to_huge(layer: str, dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(1, 1, bias=False), models.ACTIVATIONS[layer]()).to(dtype)
    network[0].weight.data.fill_(1)
    sizes = torch.logspace(-12, 3, 200, dtype=dtype)
    for x in (*sizes, *-sizes, torch.zeros((), dtype=dtype)):
        x = x.reshape(1, 1)
        out = torch.zeros(1, 1, dtype=dtype)
        step, weights = fused.Pass(network), flat([network])
        step.losses_and_gradients(weights, x, torch.zeros_like(x), "mse", out=out)
        value, _, gradient = by_torch(network, x, torch.zeros_like(x), "mse")
        rounding = 16 * torch.finfo(dtype).eps * x.abs().item()  # 1 − h² keeps no more where h is almost 1
        torch.testing.assert_close(step.outputs(weights, x)[0], value, rtol=RELATIVE[dtype], atol=rounding / 16)
        torch.testing.assert_close(out[0], gradient, rtol=RELATIVE[dtype], atol=rounding)


def test_a_network_gets_the_same_bits_alone_and_in_company_and_wherever_its_row_lies() -> None:
    nets, x, y = [models.build("fit-1", seed=s) for s in range(5)], torch.rand(300, 1), torch.rand(300, 1)
    step, weights, out = fused.Pass(nets[0]), flat(nets), torch.empty(5, 572)
    losses, _ = step.losses_and_gradients(weights, x, y, "mse", out=out)
    wide_weights, wide_out = torch.full((5, 600), torch.nan), torch.full((5, 600), 7.0)
    wide_weights[:, :572] = weights
    step.losses_and_gradients(wide_weights[:, :572], x, y, "mse", out=wide_out[:, :572])
    assert torch.equal(wide_out[:, :572], out)
    assert (wide_out[:, 572:] == 7).all()
    for k in range(5):
        alone = torch.empty(1, 572)
        loss, _ = step.losses_and_gradients(weights[k : k + 1], x, y, "mse", out=alone)
        assert torch.equal(alone[0], out[k])
        assert loss == losses[k]


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_what_is_not_finite_shows(activation: str, dtype: torch.dtype) -> None:
    network = models.mlp((2, 3, 2), activation).to(dtype)
    x, y = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]], dtype=dtype), torch.tensor([0, 1])
    out = torch.zeros(1, 17, dtype=dtype)
    for loss in ("cross_entropy", "mse"):
        losses, _ = fused.Pass(network).losses_and_gradients(flat([network]), x, y, loss, out=out)
        assert losses.isnan().all()
        assert out.isnan().any()


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def hooked() -> nn.Module:
    network = models.mlp((2, 2, 2))
    network[1].register_forward_hook(lambda layer, inputs, output: 2 * output)
    return network


def tied() -> nn.Module:
    network = models.mlp((2, 2, 2))
    network[3].weight = network[1].weight
    return network


def frozen() -> nn.Module:
    network = models.mlp((2, 2, 2))
    network[1].bias.requires_grad_(False)
    return network


@pytest.mark.parametrize(
    "network",
    [
        Residual(nn.Linear(2, 2)),
        nn.Sequential(Residual(nn.Linear(2, 2))),
        nn.Sequential(nn.Linear(2, 2), nn.Dropout()),
        nn.Sequential(nn.Linear(2, 2), nn.GELU("tanh")),
        nn.Sequential(nn.Linear(2, 2), nn.Softplus(threshold=5)),
        nn.Sequential(nn.Linear(2, 2), nn.Flatten(0)),
        nn.Sequential(nn.Tanh()),
        nn.Linear(2, 2),
        models.build("d1-mlp"),
        models.build("cifar-1"),
        hooked(),
        tied(),
        frozen(),
    ],
)
def test_other_networks_are_left_to_pytorch(network: nn.Module) -> None:
    assert not fused.supports(network, "mse", torch.float32, "cpu")
    with pytest.raises(ValueError, match="only nn"):
        fused.Pass(network)


def test_it_is_for_the_cpu_and_two_types_of_numbers() -> None:
    network = models.build("fit-0")
    assert fused.supports(network, "cross_entropy", torch.float64, "cpu")
    assert not fused.supports(network, "mse", torch.float32, "cuda")
    assert not fused.supports(network, "mse", torch.bfloat16, "cpu")
    assert not fused.supports(network, "hinge", torch.float32, "cpu")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": torch.ones(4, 3)}, ValueError),
        ({"x": torch.ones(4, 2).double()}, ValueError),
        ({"x": torch.ones(0, 2)}, ValueError),
        ({"x": torch.ones(3, 4, 2), "own": True}, ValueError),
        ({"weights": torch.ones(2, 8)}, ValueError),
        ({"weights": torch.ones(2, 9).double()}, ValueError),
        ({"y": torch.zeros(5, dtype=torch.int64)}, ValueError),
        ({"y": torch.zeros(4, dtype=torch.int32)}, ValueError),
        ({"y": torch.zeros(3, 4, dtype=torch.int64)}, ValueError),
        ({"y": torch.zeros(4, 1), "loss": "mse"}, ValueError),
        ({"y": torch.zeros(4, 3)}, ValueError),
        ({"loss": "hinge"}, ValueError),
        ({"out": torch.empty(2, 8)}, ValueError),
        ({"y": torch.tensor([0, 1, 2, 3])}, IndexError),
        ({"y": torch.tensor([0, 1, -100, 2]), "loss": "mse"}, IndexError),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, error: type[Exception]) -> None:
    call = {
        "weights": torch.ones(2, 9),
        "x": torch.ones(4, 2),
        "y": torch.tensor([0, 1, 2, 0]),
        "out": torch.empty(2, 9),
    }
    with pytest.raises(error):
        fused.Pass(models.mlp((2, 3))).losses_and_gradients(**{"loss": "cross_entropy"} | call | change)


def fit(networks: list[nn.Module], **settings: Any) -> training.History:
    data = functions.sample("sinc", 30, -1, 1)
    settings = {"epochs": 3, "lr": 1e-2, "loss": "mse", "optimizer": "adam", "progress": False} | settings
    return training.fit(networks, data, **settings)


def test_fit_takes_it_for_long_trainings_whatever_is_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(engine, "train", lambda _networks, _parts, jobs, *_: used.append(jobs[0].compiled))
    for epochs, chunk, name in (
        (20_000, None, "fit-0"),
        (20, None, "fit-0"),
        (20_000, 1, "fit-0"),
        (10**6, None, "d1-mlp"),
    ):
        network = models.build(name)
        data = (torch.rand(30, network[1].in_features), torch.rand(30, network[-1].out_features))
        training.fit(network, data, epochs=epochs, lr=0.1, loss="mse", chunk=chunk)
    assert used == [True, False, False, False]


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("seed", [0, [1, 2, 3]])
def test_fit_gives_the_same_with_it(batch_size: int | None, seed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [[models.mlp((1, 6, 6, 1), "tanh", seed=s).double() for s in range(3)] for _ in range(2)]
    expected = fit(nets[0], batch_size=batch_size, seed=seed)
    monkeypatch.setattr(fused, "pays", lambda *sizes: True)
    history = fit(nets[1], batch_size=batch_size, seed=seed)
    torch.testing.assert_close(flat(nets[1]), flat(nets[0]), rtol=1e-10, atol=1e-12)
    for field in ("train_loss", "running_loss"):
        assert getattr(history, field) == pytest.approx(getattr(expected, field), rel=1e-10)


def test_numba_and_dask_are_loaded_late_and_numba_needs_no_place_for_its_cache(tmp_path: Path) -> None:
    """As on a machine where neither the package's folder nor the user's can be written to, and nobody is at home."""
    package = tmp_path / "labutils"
    shutil.copytree(Path(fused.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__pycache__").touch()  # a file: no folder can be made there, by root neither
    code = """
import sys, numpy
from labutils import fused, training
assert not {"numba", "dask", "distributed"} & set(sys.modules)
from labutils import loops
numbers = numpy.array([2.0, 3.0])
loops.scale_by(numbers, numbers)
print(*numbers, loops.__file__)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "NUMBA_CACHE_DIR")}
    environment |= {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": "/dev/null/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["4.0", "9.0", str(package / "loops.py")], done.stderr
    assert not list(tmp_path.rglob("*.nbi"))
