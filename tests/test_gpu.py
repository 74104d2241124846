"""Whatever computes on a GPU gives what it gives on a processor, in float64. Without a GPU these tests are skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labutils import backprop, curvature, landscape, optim, representations, similarity, training
from tests.test_training import EACH, OPTIMIZERS, flat, make_cnns, make_data, make_mlps

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def same(found: Any, expected: Any, rtol: float = 1e-8) -> None:
    """Compare numbers, arrays, tensors of any device, and dictionaries and sequences of them."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other, rtol)
        return
    found, expected = (v.detach().cpu().numpy() if isinstance(v, Tensor) else v for v in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-10)


def on(device: str, *values: Any) -> list[Any]:
    """Copies of networks and tensors on a device."""
    return [copy.deepcopy(value).to(device) for value in values]


# --- Training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trainings_end_where_they_do_on_a_processor(kind: str, optimizer: str) -> None:
    def train(device: str) -> tuple[Any, ...]:
        saved, networks = training.Snapshots(2), EACH[kind](3)
        settings = {"epochs": 5, "batch_size": 11, "seed": [5, 6, 7], **OPTIMIZERS[optimizer][0]}
        history = training.fit(networks, make_data(kind), on_epoch=saved, device=device, **settings)
        assert {p.device.type for n in networks for p in n.parameters()} == {"cpu"}  # back where they came from
        assert saved.weights.device.type == "cpu"
        return (
            history.running_loss,
            history.train_loss,
            history.train_accuracy,
            list(map(flat, networks)),
            saved.weights,
        )

    same(train(GPU), train("cpu"))


def test_augmentation_schedule_and_rates_of_layers_are_the_same() -> None:
    def train(device: str) -> tuple[Any, ...]:
        networks, last = (
            make_cnns(2),
            [name for name, m in make_cnns(1)[0].named_modules() if isinstance(m, nn.Linear)][-1],
        )
        settings = {"epochs": 4, "batch_size": 11, "lr": 0.05, "layer_lr": {last: [0.2, 0.01]}, "augment": True}
        settings |= {"schedule": "step", "step_size": 2}
        history = training.fit(networks, make_data("cnn"), device=device, **settings)
        return history.running_loss, list(map(flat, networks))

    same(train(GPU), train("cpu"))


def test_a_sweep_measures_the_same() -> None:
    x, _ = make_data("mlp")

    def sweep(device: str) -> list[np.ndarray]:
        def outputs(epoch: int, stack: training.Stack) -> list[float]:
            return [model(x.to(stack.device)).square().mean().item() for model in stack.models]

        def norms(epoch: int, stack: training.Stack) -> Tensor:
            return stack.weights.norm(dim=1)  # a tensor of the stack's device

        tables = training.sweep(
            lambda seed: make_mlps(seed + 1)[-1],
            make_data("mlp"),
            [{"lr": 0.1}, {"lr": 0.01}],
            seeds=2,
            epochs=3,
            batch_size=11,
            measure={"outputs": outputs, "norms": norms},
            device=device,
        )
        return [table.select_dtypes("number").to_numpy(float) for table in tables]

    same(sweep(GPU), sweep("cpu"))


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABUTILS_CHECKPOINT_SECONDS", "0")
    backward, steps = training.Stack.backward, 0

    def train(**options: Any) -> list[Tensor]:
        networks = make_mlps(2)
        settings = {"epochs": 4, "batch_size": 11, "optimizer": "adam", "lr": 0.01, "device": GPU}
        training.fit(networks, make_data("mlp"), **settings, **options)
        return list(map(flat, networks))

    def interrupt(self: training.Stack, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise RuntimeError("the plug was pulled")
        return backward(self, *args, **options)

    expected = train()
    with monkeypatch.context() as patch:
        patch.setattr(training.Stack, "backward", interrupt)
        with pytest.raises(RuntimeError, match="plug"):
            train(checkpoint=tmp_path / "c")
    assert (tmp_path / "c").exists()
    same(train(checkpoint=tmp_path / "c"), expected)


def test_evaluation_is_the_same() -> None:
    networks, data = make_mlps(3), make_data("mlp")
    same(training.evaluate(networks, data, device=GPU), training.evaluate(networks, data))
    weights = torch.stack(list(map(flat, networks)))
    found = training.evaluate_weights(networks[0], weights, data, device=GPU)
    same(found, training.evaluate_weights(networks[0], weights, data))
    directions = landscape.filter_normalized_directions(networks[0])
    place = networks[0], data, directions, [-1, 0, 1], [0, 1]
    surfaces = (landscape.loss_surface(*place, device=device) for device in (GPU, "cpu"))
    same(*surfaces)


# --- Networks and tensors that lie there -------------------------------------------------------------------------


def mean_loss(x: Tensor, y: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda network: F.cross_entropy(network(x), y)


OF_NETWORK: dict[str, Callable[[nn.Sequential, nn.Sequential, Tensor, Tensor], Any]] = {
    "backpropagate": lambda n, _, x, y: backprop.backpropagate(n, x, y, "cross_entropy"),
    "central differences": lambda n, _, x, y: backprop.central_differences(n, x, y, "cross_entropy"),
    "gradient norm": lambda n, _, x, y: curvature.gradient_norm(n, x, y, "cross_entropy"),
    "Hessian": lambda n, _, x, y: curvature.hessian(mean_loss(x, y), n),
    "Gauss-Newton": lambda n, _, x, y: curvature.gauss_newton(n, x),
    "eigenvalues": lambda n, _, x, y: curvature.eigenvalues(curvature.hessian(mean_loss(x, y), n)),
    "extremes": lambda n, _, x, y: list(curvature.extreme_eigenvalues(mean_loss(x, y), n, tol=1e-9)),
    "trace": lambda n, _, x, y: curvature.hessian_trace(mean_loss(x, y), n).mean,
    "sensitivity": lambda n, _, x, y: [
        curvature.sensitivity(n, x, y, of) for of in ("loss", "logits", "probabilities")
    ],
    "sharpness": lambda n, _, x, y: curvature.sharpness(mean_loss(x, y), n),
    "minimized gradient": lambda n, m, x, y: curvature.minimize_gradient(mean_loss(x, y), [n, m], steps=5),
    "Levenberg-Marquardt": lambda n, m, x, y: curvature.levenberg_marquardt([n, m], x, F.one_hot(y, 3).to(x), steps=5),
    "between two": lambda n, m, x, y: [flat(one) for one in landscape.interpolate(n, m, [0.0, 0.3, 1.0])],
    "matched units": lambda n, m, x, y: flat(landscape.match_units(n, m, x, signs=True)),
    "directions": lambda n, _, x, y: landscape.filter_normalized_directions(n),
    "path": lambda n, m, x, y: list(landscape.path_pca(torch.stack([flat(n), flat(m), flat(n) * 2]), 1)),
    "layers": lambda n, _, x, y: representations.extract(n, x),
    "gradients of layers": lambda n, _, x, y: representations.extract_gradients(n, x, y),
}


@pytest.mark.parametrize("name", OF_NETWORK)
def test_what_is_computed_of_a_network(name: str) -> None:
    first, second = make_mlps(2)
    x, y = make_data("mlp")
    found = OF_NETWORK[name](*on(GPU, first, second, x, y))
    same(found, OF_NETWORK[name](*on("cpu", first, second, x, y)), rtol=1e-6)


def minibatches(x: Tensor, z: Tensor) -> np.ndarray:
    running = similarity.MinibatchCKA()
    for xb, zb in zip(x.split(10), z.split(10), strict=True):
        running.update({"a": xb, "b": zb}, {"c": xb + zb[:, :1]})
    return running.matrix()


OF_LAYERS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "CKA": lambda x, z, y: [similarity.cka(x, z), similarity.cka(x, z, debiased=True)],
    "RBF CKA": lambda x, z, y: similarity.cka(x, z, kernel="rbf"),
    "CCA": lambda x, z, y: similarity.cca(x, z),
    "SVCCA": lambda x, z, y: similarity.svcca(x, z),
    "PWCCA": lambda x, z, y: similarity.pwcca(x, z),
    "Procrustes": lambda x, z, y: similarity.procrustes(x, z),
    "gradient CKA": lambda x, z, y: similarity.gradient_cka(x, x.tanh(), z, z.tanh()),
    "alignment": lambda x, z, y: similarity.target_alignment(x, y),
    "minibatch CKA": lambda x, z, y: minibatches(x, z),
    "all pairs": lambda x, z, y: similarity.similarity_matrix({"a": x, "b": z}, {"a": z, "b": x * 2}),
    "matching": lambda x, z, y: similarity.layer_matching_accuracy([{"a": x, "b": z}, {"a": z * 2, "b": x}]).similarity,
}


@pytest.mark.parametrize("name", OF_LAYERS)
def test_what_is_computed_of_layers(name: str) -> None:
    x, y = make_data("mlp")
    z = x[:, :4].relu() + 0.1 * x[:, 2:]
    same(OF_LAYERS[name](*on(GPU, x, z, y)), OF_LAYERS[name](x, z, y))


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_optimizers_step_alike(make: Callable[..., torch.optim.Optimizer]) -> None:
    def three_steps(device: str) -> list[Tensor]:
        network, x, y = on(device, make_mlps(1)[0], *make_data("mlp"))
        optimizer = make(network.parameters(), lr=0.1, weight_decay=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            mean_loss(x, y)(network).backward()
            optimizer.step()
        return list(network.parameters())

    same(three_steps(GPU), three_steps("cpu"))
