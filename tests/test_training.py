"""The engine against plain PyTorch loops, separate runs, and what it promises about seeds, divergence and memory."""

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from labutils import engine, functions, models, training


def make_mlps(k: int) -> list[nn.Sequential]:
    return [models.mlp((6, 7, 5, 3), "tanh", seed=s).double() for s in range(k)]


def make_cnns(k: int) -> list[nn.Sequential]:
    return [models.cnn((2, 3, 4), (5, 3), size=12, activation="tanh", seed=s).double() for s in range(k)]


def make_residuals(k: int) -> list[nn.Sequential]:
    return [models.residual((2, 3, 4), 3, size=12, activation="tanh", seed=s).double() for s in range(k)]


def make_data(kind: str, n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 6) if kind == "mlp" else (n, 2, 12, 12)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=generator)


NETWORKS: dict[str, Callable[[int], list[nn.Sequential]]] = {"mlp": make_mlps, "cnn": make_cnns}
EACH = NETWORKS | {"residual": make_residuals}


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def plain_loop(model: nn.Module, data: tuple[Tensor, Tensor], make_optimizer, *, epochs, batch_size, seed) -> list:
    """Train as everyone writes it: built-in optimizer, autograd, batches in the order that the seed gives."""
    optimizer = make_optimizer(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    x, y = data
    running = []
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for start in range(0, len(x), batch_size):
            index = order[start : start + batch_size]
            loss = F.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index)
        running.append(total / len(x))
    return running


OPTIMIZERS = {
    "sgd": (
        {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    ),
    "adam": (
        {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01},
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
    ),
    "adamw": (
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_stack_trains_as_plain_loops_do(kind: str, name: str, chunk: int) -> None:
    """20 steps of three networks with their own batches, against torch's optimizers one network at a time."""
    ours, theirs = EACH[kind](3), EACH[kind](3)
    data = make_data(kind)
    settings_, make_optimizer = OPTIMIZERS[name]
    seeds = [5, 6, 7]
    history = training.fit(ours, data, epochs=5, batch_size=11, seed=seeds, chunk=chunk, **settings_)
    for k, model in enumerate(theirs):
        running = plain_loop(model, data, make_optimizer, epochs=5, batch_size=11, seed=seeds[k])
        np.testing.assert_allclose(history.running_loss[k], running, rtol=1e-10)
        assert (flat(ours[k]) - flat(model)).norm() <= 1e-10 * flat(model).norm()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("shared_seed", [True, False])
def test_stacked_equals_separate(kind: str, optimizer: str, shared_seed: bool) -> None:
    """Each network with hyperparameters of its own; 20 steps; relative difference at most 1e-10."""
    data = make_data(kind)
    lr, decay = [0.01, 0.05, 0.002], [0.0, 0.01, 0.1]
    momentum = [0.0, 0.9, 0.5] if optimizer == "sgd" else [0.0] * 3
    seeds = [3] * 3 if shared_seed else [3, 4, 5]
    options = {"epochs": 5, "batch_size": 11, "optimizer": optimizer}
    together = NETWORKS[kind](3)
    history = training.fit(together, data, lr=lr, momentum=momentum, weight_decay=decay, seed=seeds, chunk=3, **options)
    for k, alone in enumerate(NETWORKS[kind](3)):
        own = training.fit(alone, data, lr=lr[k], momentum=momentum[k], weight_decay=decay[k], seed=seeds[k], **options)
        assert (flat(together[k]) - flat(alone)).norm() <= 1e-10 * flat(alone).norm()
        np.testing.assert_allclose(history.train_loss[k], own.train_loss[0], rtol=1e-10)
        np.testing.assert_allclose(history.train_accuracy[k], own.train_accuracy[0])


class Residual(nn.Module):
    """A network that is no plain Sequential and has buffers: it can only run by itself."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layers = models.mlp((6, 6), seed=seed)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.layers(x))


def test_a_network_with_dropout_ends_as_it_does_alone() -> None:
    def build(seed: int) -> nn.Module:
        return nn.Sequential(models.mlp((6, 9), seed=seed), nn.Dropout(), models.mlp((9, 3), seed=seed)).double()

    options = {"epochs": 3, "lr": 0.1, "batch_size": 8}
    together, before = [build(s) for s in range(3)], torch.get_rng_state()
    training.fit(together, make_data("mlp"), seed=[4, 5, 5], **options)
    assert torch.equal(torch.get_rng_state(), before)
    for k, seed in enumerate([4, 5, 5]):
        alone = build(k)
        training.fit(alone, make_data("mlp"), seed=seed, **options)
        assert torch.equal(flat(together[k]), flat(alone))
    unlike = build(2)
    training.fit(unlike, make_data("mlp"), seed=6, **options)
    assert not torch.equal(flat(unlike), flat(together[2]))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("layer_lr", [None, {"3": 0.2}])
def test_frozen_parameters_stay(k: int, layer_lr: dict[str, float] | None) -> None:
    ours, theirs = make_mlps(k), make_mlps(k)
    for model in (*ours, *theirs):
        model[1].requires_grad_(False)
    options = {"epochs": 2, "batch_size": 8, "momentum": 0.9, "weight_decay": 0.1}
    training.fit(ours, make_data("mlp"), lr=0.1, layer_lr=layer_lr, **options)
    for mine, model in zip(ours, theirs, strict=True):
        start = model[1].weight.clone()
        groups = [{"params": model[3].parameters(), "lr": 0.2 if layer_lr else 0.1}, {"params": model[5].parameters()}]
        plain_loop(
            model, make_data("mlp"), lambda _p, g=groups: torch.optim.SGD(g, 0.1, momentum=0.9, weight_decay=0.1),
            epochs=2, batch_size=8, seed=0,
        )  # fmt: skip
        assert torch.equal(mine[1].weight, start)
        assert not mine[1].weight.requires_grad
        torch.testing.assert_close(flat(mine), flat(model), rtol=1e-10, atol=1e-14)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    x, y = make_data("mlp")
    runs = []
    for number, whole, seeds in (
        (float, int, [0, 1]),
        (np.float64, np.int64, np.arange(2)),
        (lambda v: torch.tensor(v, dtype=torch.float64), np.int32, torch.arange(2)),
    ):
        networks = make_mlps(2)
        training.fit(
            networks, (x, y), epochs=whole(2), lr=number(0.1), momentum=[number(0.9), number(0.5)], batch_size=whole(8),
            weight_decay=number(0.01), layer_lr={"1": number(0.2)}, schedule="step", step_size=whole(1),
            gamma=number(0.5), seed=seeds, evaluate_every=whole(1), padding=whole(4),
        )  # fmt: skip
        runs.append(torch.stack([flat(model) for model in networks]))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    training.fit(make_mlps(1), (x, y), epochs=1, lr=np.float32(0.1), on_epoch=training.Snapshots(np.int64(1)))


def test_one_hot_targets_may_be_whole_numbers() -> None:
    x, y = make_data("mlp")
    values = [
        training.evaluate(make_mlps(1), (x, targets), loss="mse")[0]
        for targets in (y, F.one_hot(y, 3), F.one_hot(y, 3).bool(), F.one_hot(y, 3).float())
    ]
    assert values == [values[0]] * 4


def test_evaluation_is_on_fixed_weights_and_data() -> None:
    """Epoch 0 is the untrained network; the last entry is what `evaluate` says of the trained one."""
    network = make_mlps(1)[0]
    x, y = make_data("mlp", 2500)
    with torch.no_grad():
        before = F.cross_entropy(network(x), y).item()
    history = training.fit(network, (x, y), epochs=3, batch_size=500, lr=0.1, evaluate_every=2)
    assert history.epochs.tolist() == [0, 2, 3]
    assert history.train_loss[0, 0] == pytest.approx(before, rel=1e-12)
    with torch.no_grad():
        outputs = network(x)
    loss, accuracy = training.evaluate(network, (x, y))
    assert history.train_loss[0, -1] == pytest.approx(F.cross_entropy(outputs, y).item(), rel=1e-12)
    assert history.train_accuracy[0, -1] == pytest.approx((outputs.argmax(1) == y).double().mean().item())
    assert (loss[0], accuracy[0]) == (history.train_loss[0, -1], history.train_accuracy[0, -1])


def test_evaluate_every_zero_measures_running_values_only() -> None:
    history = training.fit(make_mlps(2), make_data("mlp"), epochs=2, lr=0.1, evaluate_every=0)
    assert history.epochs.size == 0
    assert history.train_loss.shape == (2, 0)
    assert np.isfinite(history.running_loss).all()


def test_one_model_diverges_alone() -> None:
    data = functions.sample("quadratic", 30, -1, 1)
    networks = [models.mlp((1, 5, 1), seed=s) for s in range(3)]
    alone = models.mlp((1, 5, 1), seed=0)
    history = training.fit(networks, data, epochs=60, lr=[0.05, 1e20, 0.1], loss="mse", chunk=3)
    training.fit(alone, data, epochs=60, lr=0.05, loss="mse")
    assert np.isnan(history.diverged[[0, 2]]).all()
    epoch = int(history.diverged[1])
    assert 1 <= epoch <= 60
    assert np.isfinite(history.train_loss[1, :epoch]).all()
    assert np.isnan(history.train_loss[1, epoch:]).all()
    assert np.isfinite(history.train_loss[[0, 2]]).all()
    torch.testing.assert_close(flat(networks[0]), flat(alone))


READOUT = {"mlp": "5", "cnn": "9"}  # the last layer; the first layer with weights follows
FIRST = {"mlp": "1", "cnn": "0"}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_layers_with_rates_of_their_own_are_torchs_parameter_groups(kind: str, chunk: int, name: str) -> None:
    """Two layers with own rates, one value for each network and one for all, against torch with three groups."""
    readout, first = [0.2, 0.01, 0.05], 0.003
    settings_, _ = OPTIMIZERS[name]
    ours, theirs = NETWORKS[kind](3), NETWORKS[kind](3)
    data, seeds = make_data(kind), [5, 6, 7]
    layer_lr = {READOUT[kind]: readout, FIRST[kind]: first}
    options = {"epochs": 5, "batch_size": 11, "seed": seeds, "chunk": chunk}
    history = training.fit(ours, data, layer_lr=layer_lr, **options, **settings_)
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    for k, model in enumerate(theirs):
        rates = {READOUT[kind]: readout[k], FIRST[kind]: first}
        groups = [
            {"params": list(layer.parameters()), "lr": rates.get(layer_name, settings_["lr"])}
            for layer_name, layer in model.named_children()
            if list(layer.parameters())
        ]
        rest = {key: value for key, value in settings_.items() if key not in ("optimizer", "lr")}
        optimizer = make(groups, **rest)
        running = plain_loop(model, data, lambda _p, o=optimizer: o, epochs=5, batch_size=11, seed=seeds[k])
        np.testing.assert_allclose(history.running_loss[k], running, rtol=1e-10)
        assert (flat(ours[k]) - flat(model)).norm() <= 1e-10 * flat(model).norm()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_stacked_equals_separate_with_rates_and_batch_sizes_of_their_own(kind: str, optimizer: str) -> None:
    data, sizes, seeds = make_data(kind), [11, None, 11, 7], [3, 4, 5, 6]
    lr, layer_lr = [0.01, 0.05, 0.002, 0.0], {READOUT[kind]: [0.1, 0.0, 0.02, 0.05], FIRST[kind]: 0.004}
    options = {"epochs": 4, "optimizer": optimizer, "weight_decay": 0.01}
    together = NETWORKS[kind](4)
    history = training.fit(together, data, lr=lr, layer_lr=layer_lr, batch_size=sizes, seed=seeds, **options)
    for k, alone in enumerate(NETWORKS[kind](4)):
        own = {READOUT[kind]: layer_lr[READOUT[kind]][k], FIRST[kind]: 0.004}
        run = training.fit(alone, data, lr=lr[k], layer_lr=own, batch_size=sizes[k], seed=seeds[k], **options)
        assert (flat(together[k]) - flat(alone)).norm() <= 1e-10 * flat(alone).norm()
        np.testing.assert_allclose(history.train_loss[k], run.train_loss[0], rtol=1e-10)
        np.testing.assert_allclose(history.running_loss[k], run.running_loss[0], rtol=1e-10)


def test_the_same_rate_for_a_layer_changes_no_bit() -> None:
    runs = {}
    for layer_lr in (None, {"3": 0.1}, {"1": 0.1, "3": 0.1, "5": 0.1}):
        models_ = make_mlps(3)
        training.fit(models_, make_data("mlp"), epochs=3, batch_size=8, lr=0.1, layer_lr=layer_lr, momentum=0.9)
        runs[str(layer_lr)] = torch.stack([flat(model) for model in models_])
    first, *others = runs.values()
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


def test_a_rate_of_zero_freezes_a_layer() -> None:
    models_ = make_mlps(2)
    before = [layer.weight.detach().clone() for layer in models_[1] if isinstance(layer, nn.Linear)]
    training.fit(models_, make_data("mlp"), epochs=2, lr=0.1, layer_lr={"3": [0.1, 0.0]}, weight_decay=0.1)
    after = [layer.weight for layer in models_[1] if isinstance(layer, nn.Linear)]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, False]


@pytest.mark.parametrize("schedule", ["step", "one_cycle"])
def test_schedules_multiply_every_layers_rate(schedule: str) -> None:
    """Two groups under torch's schedulers; 12 steps."""
    options = {"epochs": 4, "batch_size": 15, "schedule": schedule, "step_size": 2, "gamma": 0.5}
    ours, theirs = make_mlps(1)[0], make_mlps(1)[0]
    training.fit(ours, make_data("mlp"), lr=0.1, layer_lr={"5": 0.4}, **options)
    optimizer = torch.optim.SGD(
        [{"params": theirs[:5].parameters(), "lr": 0.1}, {"params": theirs[5].parameters()}], 0.4
    )
    if schedule == "step":
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 6, 0.5)
    else:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.4], 12, cycle_momentum=False)
    optimizer.register_step_post_hook(lambda *_: scheduler.step() if scheduler.last_epoch < 11 else None)
    plain_loop(theirs, make_data("mlp"), lambda _p: optimizer, epochs=4, batch_size=15, seed=0)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-10, atol=1e-14)


def test_layers_of_any_module_may_have_rates_of_their_own() -> None:
    ours, theirs = Residual(0).double(), Residual(0).double()
    training.fit(ours, make_data("mlp"), epochs=2, lr=0.1, layer_lr={"layers.1": 0.5})
    groups = [{"params": theirs.layers.parameters(), "lr": 0.5}, {"params": theirs.norm.parameters(), "lr": 0.1}]
    plain_loop(theirs, make_data("mlp"), lambda _p: torch.optim.SGD(groups), epochs=2, batch_size=40, seed=0)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("seed", [[4, 4, 4], [4, 5, 6]])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("sizes", [[16, 16, 16], [10, 40, 10]])
def test_networks_with_labels_of_their_own_train_as_alone(kind: str, chunk: int, seed, loss: str, sizes) -> None:
    x, y = make_data(kind)
    labels = torch.stack([y, y.roll(1), (y + 1) % 3])
    options = {"epochs": 2, "lr": 0.1, "loss": loss}
    together = training.fit(
        NETWORKS[kind](3), (x, y), labels=labels, seed=seed, chunk=chunk, batch_size=sizes, **options
    )
    for k, model in enumerate(NETWORKS[kind](3)):
        alone = training.fit(model, (x, labels[k]), seed=seed[k], batch_size=sizes[k], **options)
        for name in ("train_loss", "train_accuracy", "running_loss", "running_accuracy"):
            np.testing.assert_allclose(getattr(together, name)[k], getattr(alone, name)[0], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", NETWORKS)
def test_evaluate_weights_is_evaluation_of_networks_with_these_weights(kind: str, monkeypatch) -> None:
    data, networks = make_data(kind), NETWORKS[kind](7)
    expected = training.evaluate(networks, data)
    weights = torch.stack([flat(model) for model in networks])
    subject = NETWORKS[kind](1)[0]
    before = flat(subject)
    for copies in (1, 3, 64):
        monkeypatch.setattr(training, "_COPIES", copies)
        loss, accuracy = training.evaluate_weights(subject, weights, data)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-12)
        np.testing.assert_array_equal(accuracy, expected[1])
    grid, _ = training.evaluate_weights(subject, weights[:6].view(2, 3, -1), data)
    np.testing.assert_allclose(grid, loss[:6].reshape(2, 3))
    single, _ = training.evaluate_weights(subject, weights[0], data)
    assert single.shape == ()
    assert torch.equal(flat(subject), before)
    with pytest.raises(ValueError, match=r"weights of shape \(7, 3\)"):
        training.evaluate_weights(subject, weights[:, :3], data)
    with pytest.raises(ValueError, match="one set or more"):
        training.evaluate_weights(subject, weights[:0], data)


def test_evaluation_leaves_batch_normalization_and_modes_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout()).double()
    model[0].eval()
    x, y = make_data("mlp")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.evaluate(model, (x, y))
    training.evaluate_weights(model, flat(model), (x, y))
    assert [layer.training for layer in model] == [False, True, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.eval()
    assert training.evaluate(model, (x, y))[0] == pytest.approx(F.cross_entropy(model(x), y).item())


def test_mse_on_labels_is_mse_on_one_hot() -> None:
    x, y = make_data("mlp")
    a, b = make_mlps(1)[0], make_mlps(1)[0]
    on_labels = training.fit(a, (x, y), epochs=3, lr=0.1, loss="mse")
    on_targets = training.fit(b, (x, F.one_hot(y, 3).double()), epochs=3, lr=0.1, loss="mse")
    np.testing.assert_allclose(on_labels.train_loss, on_targets.train_loss, rtol=1e-12)
    assert np.isfinite(on_labels.train_accuracy).all()
    assert np.isnan(on_targets.train_accuracy).all()


def test_the_same_seed_gives_the_same_numbers_and_another_does_not() -> None:
    x, y = make_data("cnn")
    runs, before = [], torch.random.get_rng_state()
    for seed in (1, 1, 2):
        network = make_cnns(1)[0]
        training.fit(network, (x, y), epochs=2, batch_size=8, lr=0.1, augment=True, seed=seed)
        runs.append(flat(network))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_augmented_training_still_evaluates_the_images_as_they_are() -> None:
    x, y = make_data("cnn")
    network = make_cnns(1)[0]
    history = training.fit(network, (x, y), epochs=1, batch_size=8, lr=0.1, augment=True)
    assert history.train_loss[0, -1] == pytest.approx(training.evaluate(network, (x, y))[0][0], rel=1e-12)


def test_augmentation_shifts_by_the_padding() -> None:
    """Without shift it is mirroring alone: a step on mirrored images, in the order of the generator."""
    x, y = make_data("cnn", 6)
    ours, theirs = make_cnns(1)[0], make_cnns(1)[0]
    training.fit(ours, (x, y), epochs=1, batch_size=6, lr=0.1, augment=True, padding=0, seed=3)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(6, generator=generator)
    x = training.crop_and_flip(x[order], generator, padding=0)
    F.cross_entropy(theirs(x), y[order]).backward()
    torch.optim.SGD(theirs.parameters(), 0.1).step()
    torch.testing.assert_close(flat(ours), flat(theirs))


@given(st.integers(5, 9), st.integers(5, 9), st.integers(0, 4), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_crop_and_flip_is_pad_crop_and_flip(height: int, width: int, padding: int, seed: int) -> None:
    """Every image of the result is one of the crops, or its mirror image, of the padded original."""
    x = torch.randn(6, 2, height, width, generator=torch.Generator().manual_seed(seed))
    out = training.crop_and_flip(x, torch.Generator().manual_seed(seed), padding=padding)
    padded = F.pad(x, (padding,) * 4, mode="reflect") if padding else x
    side = range(2 * padding + 1)
    crops = torch.stack([padded[:, :, i : i + height, j : j + width] for i in side for j in side])
    candidates = torch.cat([crops, crops.flip(-1)])
    assert (candidates == out).flatten(2).all(-1).any(0).all()


def test_crop_and_flip_reaches_every_shift_about_equally() -> None:
    ramp = torch.arange(9.0) + 100 * torch.arange(9.0).unsqueeze(1)
    x = ramp.expand(4000, 1, 9, 9)
    out = training.crop_and_flip(x, torch.Generator().manual_seed(0), padding=1)
    center = out[:, 0, 4, 4]
    shifts, counts = center.unique(return_counts=True)
    assert len(shifts) == 9
    assert (counts - 4000 / 9).abs().max() < 6 * math.sqrt(4000 * (1 / 9) * (8 / 9))
    mirrored = (out[:, 0, 4, 3] > out[:, 0, 4, 5]).float().mean().item()
    assert mirrored == pytest.approx(0.5, abs=6 * 0.5 / math.sqrt(4000))


def test_checkpoints_hold_the_path() -> None:
    networks = make_mlps(2)
    start = torch.stack([flat(m) for m in networks])
    path = training.Snapshots(every=2)
    training.fit(networks, make_data("mlp"), epochs=5, lr=0.1, on_epoch=path)
    assert path.epochs == [0, 2, 4]
    assert path.weights.shape == (2, 3, start.shape[1])
    assert torch.equal(path.weights[:, 0], start)
    again = make_mlps(2)
    training.fit(again, make_data("mlp"), epochs=4, lr=0.1)
    assert torch.equal(path.weights[:, -1], torch.stack([flat(m) for m in again]))


def test_measurements_hold_what_the_function_returns() -> None:
    networks, data = make_mlps(2), make_data("mlp")
    path = training.Snapshots([0, 3, 5])
    training.fit(make_mlps(2), data, epochs=5, lr=0.1, on_epoch=path)
    lengths = training.Measurements(
        lambda epoch, stack: [[epoch, w.norm().item()] for w in stack.weights], every=[5, 0, 3]
    )
    training.fit(networks, data, epochs=5, lr=0.1, on_epoch=lengths)
    assert lengths.epochs == path.epochs == [0, 3, 5]
    np.testing.assert_array_equal(lengths.values[..., 0], [[0, 3, 5]] * 2)
    np.testing.assert_allclose(lengths.values[..., 1], path.weights.norm(dim=2), rtol=1e-12)
    again = training.Measurements(lambda _epoch, _stack: None)
    again.load_state_dict(lengths.state_dict())
    assert again.epochs == lengths.epochs
    np.testing.assert_array_equal(again.values, lengths.values)


def test_measurements_copy_what_goes_on_changing() -> None:
    live = training.Measurements(lambda _epoch, stack: stack.weights.numpy())
    training.fit(make_mlps(2), make_data("mlp"), epochs=2, lr=0.1, on_epoch=live)
    assert not np.array_equal(live.values[:, 0], live.values[:, 2])


def test_measurements_need_a_row_for_each_network() -> None:
    for wrong, shape in ((1.0, r"\(\)"), ([1.0, 2.0], r"\(2,\)")):
        hook = training.Measurements(lambda _epoch, _stack, wrong=wrong: wrong)
        with pytest.raises(ValueError, match=rf"measured {shape}: one row for each of the 3 networks"):
            training.fit(make_mlps(3), make_data("mlp"), epochs=1, lr=0.1, on_epoch=hook)
    with pytest.raises(ValueError, match="nothing has been measured yet"):
        _ = training.Snapshots().weights
    with pytest.raises(ValueError, match="every = 0"):
        training.Measurements(lambda _epoch, _stack: 0, every=0)


def test_networks_are_in_eval_mode_while_a_hook_sees_them_and_afterward() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout()).double()
    modes = []
    hook = lambda _epoch, stack: modes.append(stack.models[0][1].training)  # noqa: E731
    training.fit(model.eval(), make_data("mlp"), epochs=3, lr=0.1, on_epoch=hook, evaluate_every=0)
    assert modes == [False] * 4
    assert not any(layer.training for layer in model.modules())
    assert model[1].num_batches_tracked == 3


def test_networks_own_their_weights_again_after_training_even_when_interrupted() -> None:
    networks = make_mlps(3)

    def interrupt(epoch: int, _stack: training.Stack) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit(networks, make_data("mlp"), epochs=5, lr=0.1, on_epoch=interrupt)
    reference = make_mlps(3)
    training.fit(reference, make_data("mlp"), epochs=2, lr=0.1)
    storages = set()
    for model, other in zip(networks, reference, strict=True):
        assert torch.equal(flat(model), flat(other))  # two epochs of work are kept
        for parameter in model.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()
            storages.add(parameter.untyped_storage().data_ptr())
            assert parameter.requires_grad
    assert len(storages) == sum(len(list(m.parameters())) for m in networks)


def test_epochs_to_convergence() -> None:
    epochs = np.arange(0, 500, 50)
    falling = np.linspace(1, 0, 10)
    flat_from_200 = np.where(epochs < 200, 1 - epochs / 200, 0.0)
    result = training.epochs_to_convergence(epochs, np.stack([falling, flat_from_200]), drop=1e-6, window=100)
    assert np.isnan(result[0])
    assert result[1] == 300
    with pytest.raises(ValueError, match="no two of the evaluated epochs are 30 apart"):
        training.epochs_to_convergence(epochs, falling[None], window=30)


def fit(**changes):
    options = {"models": make_mlps(2), "dataset": make_data("mlp"), "epochs": 1, "lr": 0.1} | changes
    return training.fit(options.pop("models"), options.pop("dataset"), **options)


X, Y = make_data("mlp")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "no models"),
        ({"models": [make_mlps(1)[0]] * 2}, "given twice"),
        ({"models": [nn.Flatten(), nn.Flatten()]}, "needs parameters"),
        ({"models": make_mlps(1)[0].requires_grad_(False)}, "every parameter is frozen"),
        ({"models": nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1))).double()}, r"must give \(N, outputs\)"),
        ({"epochs": True}, "epochs = True"),
        ({"gamma": -2.0}, r"gamma = -2\.0"),
        ({"gamma": math.nan}, "gamma = nan"),
        ({"nesterov": True}, "nesterov needs a momentum"),
        ({"seed": 2**64}, "seed = 1844"),
        ({"epochs": 0}, "epochs = 0"),
        ({"epochs": 2.5}, r"epochs = 2\.5"),
        ({"lr": [0.1, 0.2, 0.3]}, "lr has 3 values for 2 networks"),
        ({"lr": -0.1}, r"lr = -0\.1"),
        ({"lr": math.nan}, "lr = nan"),
        ({"layer_lr": {"1": "fast"}}, r"layer_lr\['1'\] = 'fast'"),
        ({"momentum": [0.9, -1]}, "momentum = -1"),
        ({"weight_decay": -1}, "weight_decay = -1"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"batch_size": 2.0}, r"batch_size = 2\.0: a whole number"),
        ({"seed": [1]}, "seed has 1 values for 2 networks"),
        ({"seed": -1}, "seed = -1"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; there are 'sgd', 'adam', 'adamw'"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum and nesterov belong to 'sgd'"),
        ({"schedule": "cosine"}, "unknown schedule 'cosine'"),
        ({"schedule": "step", "step_size": 0}, "step_size = 0"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"evaluate_every": -1}, "evaluate_every = -1"),
        ({"padding": -1}, "padding = -1"),
        ({"chunk": 0}, "chunk = 0"),
        ({"augment": True}, r"augment needs images \(N, C, H, W\); x is \(40, 6\)"),
        ({"dataset": (X, Y[:5])}, "train: 40 examples and 5 labels"),
        ({"dataset": (X[:0], Y[:0])}, "train: 0 examples"),
        ({"dataset": (X, X)}, "cross-entropy takes labels"),
        ({"dataset": (X, X[:, 0]), "loss": "mse"}, r"targets must be \(N, outputs\)"),
        ({"dataset": (X, X[:, :1]), "loss": "mse"}, r"targets \(40, 1\) for networks of 3 outputs"),
        ({"dataset": (X, Y - 1)}, r"train: labels from -1 to 1, but the networks' 3 outputs stand for 0 to 2"),
        ({"dataset": (X, F.one_hot(Y))}, r"takes labels \(N,\) int64, y is \(40, 3\)"),
        ({"labels": torch.stack([Y, Y + 1])}, "labels: labels from 0 to 3"),
        ({"labels": Y}, r"labels \(40,\) torch.int64: 2 networks and 40 labeled examples need \(2, 40\) int64"),
        ({"labels": torch.stack([Y, Y]).double()}, r"labels \(2, 40\) torch.float64"),
        ({"labels": torch.stack([Y, Y]), "dataset": (X, X), "loss": "mse"}, r"need \(2, 40\) int64"),
        ({"batch_size": [4, 5], "on_epoch": lambda _e, _s: None}, "on_epoch sees one stack"),
        ({"layer_lr": {"0": 0.1}}, "no layer '0' with parameters; there are '1', '3', '5'"),
        ({"layer_lr": {"": 0.1}}, "no layer '' with parameters"),
        ({"layer_lr": {"1": [0.1, 0.2, 0.3]}}, r"layer_lr\['1'\] has 3 values for 2 networks"),
        ({"layer_lr": {"1": [0.1, -0.1]}}, r"layer_lr\['1'\] = -0\.1: must be 0 or more"),
    ],
)
def test_bad_input_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(**changes)


def normalized(k: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double() for _ in range(k)]


@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("make", [make_mlps, normalized])
@pytest.mark.parametrize("k", [1, 3])
def test_a_hook_may_put_the_networks_into_another_stack(make, chunk: int | None, k: int) -> None:
    """Evaluated in the middle, they go on training; and a stack is what its networks are."""
    quiet, watched, losses = make(k), make(k), []

    def watch(_epoch: int, stack: training.Stack) -> None:
        losses.append(training.evaluate(stack.models, make_data("mlp"))[0])
        weights = training.evaluate_weights(stack.models[0], stack.weights[0].requires_grad_(), make_data("mlp"))[0]
        assert weights == pytest.approx(losses[-1][0])

    options = {"epochs": 3, "lr": 0.1, "batch_size": 16, "chunk": chunk}
    training.fit(quiet, make_data("mlp"), **options)
    history = training.fit(watched, make_data("mlp"), on_epoch=watch, **options)
    for a, b in zip(quiet, watched, strict=True):
        assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    np.testing.assert_allclose(history.train_loss.T, losses, rtol=1e-12)


def test_data_may_be_arrays() -> None:
    x, y = make_data("mlp")
    model = make_mlps(1)[0]
    assert training.evaluate(model, [x.numpy(), y.numpy()]) == training.evaluate(model, (x, y))


def test_small_images_cannot_be_cropped() -> None:
    with pytest.raises(ValueError, match="more than 4 pixels a side"):
        training.crop_and_flip(torch.zeros(2, 1, 4, 4), torch.Generator())


class Bar(engine.tqdm):
    """A progress bar that keeps what it would show."""

    made: ClassVar[list["Bar"]] = []

    def __init__(self, **options) -> None:
        self.asked = options
        super().__init__(**options)
        Bar.made.append(self)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        self.said = s


@pytest.mark.parametrize("headless", [True, False])
def test_progress_shows_where_somebody_watches(headless: bool, monkeypatch) -> None:
    monkeypatch.setattr(engine, "tqdm", Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    if headless:
        monkeypatch.setenv("LABUTILS_RUN_DIR", "somewhere")
    else:
        monkeypatch.delenv("LABUTILS_RUN_DIR", raising=False)
    history = training.fit(make_mlps(3), make_data("mlp"), epochs=2, lr=0.1)
    assert Bar.made[-1].asked == {"total": 2, "unit": "epoch", "disable": headless, "leave": False}
    assert Bar.made[-1].said == f"median train loss {np.median(history.train_loss[:, -1]):.3g}"
    if not headless:
        assert Bar.made[-1].n == 2
