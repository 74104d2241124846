"""Stacks of any module against the modules themselves: outputs, gradients, buffers, random numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from labutils import functions, models, training
from labutils.stack import Plan, Stack, mean_accuracy, mean_loss, plan

CPU = torch.device("cpu")


class Residual(nn.Sequential):
    """A Sequential with a `forward` of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Custom(nn.Module):
    """A network that is no Sequential: functions in place of layers, a bare parameter, a buffer that it uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(6, 6, bias=False), nn.Parameter(torch.randn(6))
        self.register_buffer("shift", torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.first(x) * self.scale + self.shift)[:, :3]


def twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3))


def tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    network[2].weight = network[0].weight
    return network


def partly_frozen() -> nn.Module:
    network = models.mlp((6, 5, 3), "tanh")
    for parameter in network[1].parameters():
        parameter.requires_grad_(False)
    return network


class PixelSoftmax(nn.Sequential):
    """The softmax over the channels of feature maps."""

    def __init__(self) -> None:
        super().__init__(nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 4, 1), nn.Softmax(1), nn.Flatten(), nn.Linear(12, 3))


ANY: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: nn.Sequential(Residual(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)),
    "own forward, outermost": lambda: Residual(nn.Linear(6, 6)),
    "no Sequential": Custom,
    "a layer twice": twice,
    "a weight in two layers": tied,
    "partly frozen": partly_frozen,
    "batch normalization": lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)),
    "batch normalization of the inputs": lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)),
    "softmax of feature maps": PixelSoftmax,
    "transposed convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 2, 2), nn.Flatten(), nn.Linear(8, 3)
    ),
    "an unused parameter": lambda: nn.ModuleDict({"a": nn.Linear(6, 3), "b": nn.Linear(2, 2)}),
}


def make(kind: str, k: int) -> list[nn.Module]:
    torch.manual_seed(0)
    networks = [ANY[kind]().double() for _ in range(k)]
    for network in networks:
        if isinstance(network, nn.ModuleDict):
            network.forward = network["a"].forward
        elif kind == "batch normalization":
            nn.init.normal_(network[1].running_mean)
    return networks


def batch(n: int = 9, *leading: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*leading, n, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (*leading, n), generator=generator)


def gradient(model: nn.Module, value: Tensor) -> Tensor:
    parameters = list(model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    found = dict(zip(trainable, torch.autograd.grad(value, trainable, materialize_grads=True), strict=True))
    return torch.cat([found.get(p, torch.zeros_like(p)).flatten() for p in parameters])


@pytest.mark.parametrize("kind", [kind for kind in ANY if kind != "an unused parameter"])
@pytest.mark.parametrize("own", [False, True])
def test_any_module_stacks_and_gives_what_it_gives_alone(kind: str, own: bool) -> None:
    """Three networks in chunks of two: outputs, losses, gradients and buffers after two steps."""
    stacked, alone = make(kind, 3), make(kind, 3)
    x, y = batch(9, 3) if own else batch()
    with Stack(stacked, example=x[0, :2] if own else x[:2], chunk=2) as stack:
        assert stack.chunk == 2
        for _ in range(2):
            losses, shares = stack.backward(x, y, "cross_entropy", own=own)
        found = stack.gradients.clone()
        outputs = stack.forward(x, own=own)
    for k, model in enumerate(alone):
        xk, yk = (x[k], y[k]) if own else (x, y)
        model(xk)
        value = F.cross_entropy(model(xk), yk)
        torch.testing.assert_close(found[k], gradient(model, value), rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(losses[k], value.item(), rtol=1e-12)
        with torch.no_grad():
            expected = model(xk)
        torch.testing.assert_close(outputs[k], expected)
        assert shares[k] == (expected.argmax(1) == yk).double().mean()
        for mine, other in zip(stacked[k].buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(mine, other)


@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    k=st.integers(1, 4),
    activation=st.sampled_from(sorted(models.ACTIVATIONS)),
    bias=st.booleans(),
    own=st.booleans(),
    loss=st.sampled_from(["cross_entropy", "mse"]),
)
@settings(max_examples=40, deadline=None)
def test_gradients_of_a_stack_are_autograds(widths, k, activation, bias, own, loss) -> None:
    networks = [models.mlp((6, *widths, 3), activation, bias=bias, seed=s).double() for s in range(k)]
    x, y = batch(5, *[k] * own)
    expected, losses = [], []
    for i, model in enumerate(networks):
        output, yi = model(x[i] if own else x), y[i] if own else y
        targets = yi if loss == "cross_entropy" else F.one_hot(yi, 3).double()
        value = F.cross_entropy(output, yi) if loss == "cross_entropy" else F.mse_loss(output, targets)
        losses.append(value.item())
        expected.append(gradient(model, value))
    with Stack(networks, chunk=k) as stack:
        values, _ = stack.backward(x, y, loss, own=own)
        gradients = stack.gradients
    torch.testing.assert_close(gradients, torch.stack(expected), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(values.numpy(), losses, rtol=1e-12)


@pytest.mark.parametrize("build", [lambda s: models.build("cifar-1", softmax=True, seed=s), lambda s: models.residual(
    (3, 4, 5), seed=s)], ids=["softmax", "residual"])  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 2])
def test_convolutions_stack(build: Callable[[int], nn.Module], chunk: int) -> None:
    networks = [build(s).double() for s in range(2)]
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack([m(x) for m in networks])
    with Stack(networks, chunk=chunk) as stack:
        torch.testing.assert_close(stack.forward(x), expected)
        torch.testing.assert_close(stack.forward(x.expand(2, *x.shape), own=True), expected)


def test_as_many_examples_or_features_as_networks_are_no_confusion() -> None:
    """(N, F, 1) with N equal to K, and outputs as many as both."""
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(3, 3)).double() for _ in range(3)]
    x, y = torch.randn(3, 3, 1, dtype=torch.float64), torch.tensor([0, 1, 2])
    expected = torch.stack([m(x) for m in networks])
    with Stack(networks, example=x[:2]) as stack:
        assert stack.chunk == 3
        torch.testing.assert_close(stack.forward(x), expected.detach())
        losses, _ = stack.backward(x, y, "cross_entropy")
    torch.testing.assert_close(losses, torch.stack([F.cross_entropy(o, y) for o in expected]).detach())


def test_while_in_use_the_networks_see_the_stacks_tensors_and_own_them_afterward() -> None:
    networks = make("batch normalization", 3)
    x, y = batch()
    with Stack(networks, example=x[:2]) as stack:
        stack.weights.mul_(2)
        stack.backward(x, y, "cross_entropy")
        for model, row in zip(stack.models, stack.weights, strict=True):
            assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), row)
            assert model[1].num_batches_tracked == 1
        saved = stack.state_dict()
        stack.backward(x, y, "cross_entropy")
        stack.load_state_dict(saved)
        assert networks[2][1].num_batches_tracked == 1
    tensors = [t for model in networks for t in (*model.parameters(), *model.buffers())]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)
    assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in tensors)


class Rebinding(nn.Module):
    """A running mean as many write it: by assignment, of which vmap keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return h - self.mean


class Branching(nn.Module):
    """What it computes depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h if h.sum() > 0 else -h


class Attribute(nn.Module):
    """Networks whose `repr` does not tell that they differ."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Attribute.made += 1
        self.layer, self.power = nn.Linear(6, 3), 1 + Attribute.made % 2

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) ** self.power


@pytest.mark.parametrize(
    "build", [Rebinding, Branching, Attribute, lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout())]
)
def test_what_vmap_cannot_compute_runs_alone(build: Callable[[], nn.Module]) -> None:
    networks = [build().double() for _ in range(3)]
    x, _ = batch()
    state = torch.get_rng_state()
    made = plan(networks, x[:2], 9, CPU)
    assert made == Plan(1, isinstance(networks[0], nn.Sequential), 3)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match=r"chunk = 3: these networks run one by one \(1\), since"):
        Stack(networks, example=x[:2], chunk=3)


def test_a_rebound_buffer_is_kept_alone() -> None:
    x, y = batch()
    networks, reference = [Rebinding().double() for _ in range(2)], Rebinding().double()
    reference.load_state_dict(networks[1].state_dict())
    with Stack(networks, example=x[:2]) as stack:
        stack.backward(x, y, "cross_entropy")
    reference(x)
    assert torch.equal(networks[1].mean, reference.mean)


def test_planning_changes_nothing() -> None:
    networks = make("batch normalization", 2)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in networks]
    plan(networks, batch(2)[0], 9, CPU)
    for model, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_tiny_networks_share_a_chunk_and_large_convolutions_run_alone(monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    x, _ = functions.sample("sinc", 300, -1, 1)
    with Stack([models.build("fit-0", seed=s) for s in range(8)], example=x[:1], batch_size=300) as stack:
        assert stack.chunk == 8
    networks, images = [models.cnn((3, 8, 16), size=16, seed=s) for s in range(12)], torch.zeros(1, 3, 16, 16)
    chunks = [plan(networks, images, batch_size, CPU).chunk for batch_size in (8, 16, 32, 64)]
    assert chunks == [6, 4, 1, 1]


@pytest.mark.parametrize(("channels", "expected"), [(1, False), (2, True), (3, True)])
def test_convolutions_alone_see_images_of_several_channels_pixel_by_pixel(channels: int, expected: bool) -> None:
    network, seen = models.cnn((channels, 4, 3), size=8).double(), []
    x, y = torch.randn(5, channels, 8, 8).double(), torch.tensor([0, 1, 2, 3, 4])
    value = F.cross_entropy(network(x), y)
    want = gradient(network, value)
    network[1].register_forward_hook(lambda _layer, inputs, _output: seen.append(inputs[0].stride()[1] == 1))
    with Stack([network], chunk=1) as stack:
        losses, _ = stack.backward(x, y, "cross_entropy")
        torch.testing.assert_close(stack.gradients[0], want, rtol=1e-10, atol=1e-14)
    assert seen == [expected]
    assert losses.item() == pytest.approx(value.item(), rel=1e-12)


def test_a_part_of_a_stack_computes_the_bits_of_the_whole() -> None:
    """Rows that begin anywhere in memory would round differently in products of matrices."""
    x, y = torch.randn(5, 9, 2, 9, 9), torch.randint(0, 3, (5, 9))
    networks = [models.cnn((2, 3), (5, 3), size=9, seed=s) for s in range(5)]
    with Stack(networks, planned=Plan(2)) as whole:
        losses, _ = whole.backward(x, y, "cross_entropy", own=True)
        gradients = whole.gradients.clone()
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        with Stack(networks[part], planned=Plan(2)) as stack:
            own, _ = stack.backward(x[part].clone(), y[part], "cross_entropy", own=True)
            assert torch.equal(own, losses[part])
            assert torch.equal(stack.gradients, gradients[part])


def frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False)


def test_differing_networks_do_not_stack() -> None:
    plain, skip = (models.residual((1, 2), size=4, skip=skip) for skip in (False, True))
    for pair in (
        [plain, skip],
        [models.mlp((6, 5, 3)), models.mlp((6, 3))],
        [models.mlp((6, 3)), frozen(models.mlp((6, 3)))],
        [Residual(nn.Linear(6, 6)), nn.Sequential(nn.Linear(6, 6))],
    ):
        with pytest.raises(ValueError, match=r"models\[1\] differs"):
            Stack(pair)
    with pytest.raises(ValueError, match="all of one floating-point type"):
        Stack([nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())])
    with pytest.raises(ValueError, match=r"must give \(N, outputs\), but 2 examples give \(2,\)"):
        Stack([nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))], example=torch.zeros(2, 6))
    pair = [models.mlp((6, 6, 6)) for _ in range(2)]
    pair[1][3] = pair[0][3]
    with pytest.raises(ValueError, match="networks share parameters"):
        Stack(pair)
    network = models.mlp((6, 3))
    network.forward = lambda x: (x, x)
    with pytest.raises(ValueError, match="but 2 examples give a tuple"):
        Stack([network], example=torch.zeros(2, 6))
    with pytest.raises(ValueError, match="every parameter is frozen"), Stack([frozen(models.mlp((6, 3)))]) as stack:
        stack.backward(torch.zeros(2, 6), torch.tensor([0, 1]), "mse")


def test_losses_are_torchs() -> None:
    outputs, targets = torch.randn(4, 5, 3).double(), torch.randn(4, 5, 3).double()
    labels = torch.randint(0, 3, (4, 5))
    for k in range(4):
        assert mean_loss(outputs[k], targets[k], "mse") == pytest.approx(F.mse_loss(outputs[k], targets[k]))
        assert mean_loss(outputs, targets, "mse")[k] == pytest.approx(F.mse_loss(outputs[k], targets[k]))
        assert mean_loss(outputs, targets[0], "mse")[k] == pytest.approx(F.mse_loss(outputs[k], targets[0]))
        for y in (labels, labels[0]):
            mine = y if y.dim() == 1 else y[k]
            one_hot = F.one_hot(mine, 3).double()
            assert mean_loss(outputs, y, "mse")[k] == pytest.approx(F.mse_loss(outputs[k], one_hot))
            assert mean_loss(outputs, y, "cross_entropy")[k] == pytest.approx(F.cross_entropy(outputs[k], mine))
            assert mean_accuracy(outputs, y)[k] == (outputs[k].argmax(1) == mine).double().mean()


@pytest.mark.parametrize(
    ("y", "loss", "message"),
    [
        (torch.zeros(5, 1), "mse", r"mse of outputs \(5, 3\) takes labels \(5,\) int64 or targets \(5, 3\), y is"),
        (torch.zeros(5), "mse", r"y is \(5,\) torch.float32"),
        (torch.zeros(3), "mse", r"y is \(3,\)"),
        (torch.zeros(1, 3), "mse", r"y is \(1, 3\)"),
        (torch.zeros(5, 3, dtype=torch.int64), "mse", r"y is \(5, 3\) torch.int64"),
        (torch.zeros(5, dtype=torch.int32), "mse", "torch.int32"),
        (torch.zeros(1, dtype=torch.int64), "cross_entropy", r"takes labels \(5,\) int64, y is \(1,\)"),
        (torch.zeros(5, 3), "cross_entropy", r"y is \(5, 3\) torch.float32"),
        (torch.zeros(5, dtype=torch.int64), "ce", "unknown loss 'ce'; there are 'cross_entropy', 'mse'"),
    ],
)
def test_a_loss_needs_matching_shapes(y: Tensor, loss: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_loss(torch.zeros(5, 3), y, loss)
    if loss != "ce":
        with pytest.raises(ValueError, match="y is"):
            mean_loss(torch.zeros(2, 5, 3), y, loss)
    with pytest.raises(ValueError, match=r"outputs \(5,\): a network must give \(N, outputs\)|unknown loss"):
        mean_loss(torch.zeros(5), torch.zeros(5), loss)


@pytest.mark.parametrize("label", [-100, -1, 3])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_labels_that_no_output_stands_for_are_refused(label: int, loss: str) -> None:
    y = torch.tensor([0, label])
    with pytest.raises((IndexError, RuntimeError), match=r"out of bounds|Class values"):
        mean_loss(torch.zeros(2, 3), y, loss)
    for compute in (training.evaluate, lambda *a, **o: training.fit(*a, epochs=1, lr=0.1, **o)):
        with pytest.raises(ValueError, match=r"labels from .* to .*, but the networks' 3 outputs stand for 0 to 2"):
            compute(models.mlp((6, 3)), (torch.zeros(2, 6), y), loss=loss)
