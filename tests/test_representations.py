"""labutils.representations against layers applied by hand and autograd one example at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from labutils import models
from labutils.representations import extract, extract_gradients


def images(n: int = 7) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def convnet(*, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=inplace),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 5),
        nn.ReLU(inplace=inplace),
        nn.Linear(5, 3),
    )


class Crooked(nn.Module):
    """Defines its layers in another order than it runs them, one of them twice and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.never = nn.Linear(4, 4)
        self.act = nn.ReLU(inplace=True)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.second(self.act(self.first(x)))))


@given(n=st.integers(1, 12), batch_size=st.integers(1, 15))
def test_extract_equals_the_layers_applied_one_by_one(n: int, batch_size: int) -> None:
    model = convnet().eval()
    found = extract(model, images(n), batch_size=batch_size)
    assert list(found) == [str(i) for i in range(8)]
    h = images(n)
    for layer, output in zip(model, found.values(), strict=True):
        h = layer(h)
        torch.testing.assert_close(output, h.detach())


def test_in_place_activations_do_not_corrupt_the_layer_before() -> None:
    expected, found = (extract(convnet(inplace=inplace), images()) for inplace in (False, True))
    assert (found["5"] < 0).any()
    for name, output in expected.items():
        assert torch.equal(found[name], output), name


def test_layers_come_in_the_order_in_which_they_run_and_calls_are_told_apart() -> None:
    model, x = Crooked(), torch.randn(6, 4)
    found = extract(model, x)
    assert list(found) == ["first", "act", "second", "act#2", "last"]
    assert torch.equal(found["act"], found["first"].clamp(min=0))
    assert torch.equal(found["act#2"], found["second"].clamp(min=0))
    assert list(extract(model, x, ["last", "first"])) == ["first", "last"]


def test_results_are_copies_without_a_graph() -> None:
    model, x = nn.Sequential(nn.Identity()), torch.ones(3, 2, requires_grad=True)
    found = extract(model, x)["0"]
    assert not found.requires_grad
    found += 1
    assert torch.equal(x, torch.ones(3, 2))


def test_nested_layers_and_containers_can_be_named() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Linear(3, 2))
    found = extract(model, torch.randn(5, 4), ["0", "0.1", "1"])
    assert torch.equal(found["0"], found["0.1"])
    assert list(extract(model, torch.randn(5, 4))) == ["0.0", "0.1", "1"]


def run(function: str, model: nn.Module, x: torch.Tensor, layers: list[str] | None = None, **options: object) -> dict:
    if function == "extract":
        return extract(model, x, layers, **options)
    return extract_gradients(model, x, torch.zeros(len(x), dtype=torch.int64), layers, **options)


both = pytest.mark.parametrize("function", ["extract", "extract_gradients"])


@both
def test_a_network_is_left_as_it_was(function: str) -> None:
    model = convnet().train()
    model[1].eval()
    statistics = model[1].running_mean.clone()
    modes = [layer.training for layer in model]
    run(function, model, images(4))
    assert [layer.training for layer in model] == modes
    assert torch.equal(model[1].running_mean, statistics)
    assert all(p.grad is None for p in model.parameters())
    assert not any(layer._forward_hooks for layer in model.modules())


class Failing(nn.Module):
    def __init__(self, output: object = None) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor) -> object:
        if self.output is None:
            raise RuntimeError("broken")
        return self.output


@both
def test_hooks_are_removed_and_modes_restored_when_the_forward_pass_fails(function: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), Failing())
    with pytest.raises(RuntimeError, match="broken"):
        run(function, model, torch.ones(2, 4))
    assert model.training
    assert model[1].training
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("batch_size", [3, 7])
def test_gradients_equal_autograd_one_example_at_a_time(inplace: bool, batch_size: int) -> None:
    model, x, y = convnet(inplace=False).double().eval(), images().double(), torch.arange(7) % 3
    found = extract_gradients(convnet(inplace=inplace).double(), x, y, batch_size=batch_size)
    assert list(found) == [str(i) for i in range(8)]
    for i in range(7):
        kept, h = [], x[i : i + 1]
        for layer in model:
            h = layer(h)
            h.retain_grad()
            kept.append(h)
        F.cross_entropy(h, y[i : i + 1]).backward()
        for (name, rows), expected in zip(found.items(), kept, strict=True):
            torch.testing.assert_close(rows[i], expected.grad[0], msg=lambda m, name=name: f"layer {name}: {m}")


def test_gradients_of_frozen_networks_and_under_no_grad() -> None:
    model, x, y = convnet(), images(), torch.arange(7) % 3
    expected = extract_gradients(model, x, y)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        frozen = extract_gradients(model, x, y)
    for name, gradient in expected.items():
        torch.testing.assert_close(frozen[name], gradient)


def test_a_layer_without_influence_has_gradient_zero() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.used = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.idle(x)
            return self.used(x)

    found = extract_gradients(Idle(), torch.ones(3, 4), torch.tensor([0, 1, 0]))
    assert torch.equal(found["idle"], torch.zeros(3, 3))
    assert found["used"].abs().max() > 0


def test_examples_are_converted_to_the_networks_type() -> None:
    assert extract(models.mlp((4, 2)).double(), torch.ones(3, 4))["1"].dtype == torch.float64


def test_a_bar_is_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    extract(models.mlp((4, 2)), torch.ones(3, 4), progress=True)
    assert "0/3" in capsys.readouterr().err
    extract(models.mlp((4, 2)), torch.ones(3, 4), progress=False)
    assert capsys.readouterr().err == ""


# --- Bad input ----------------------------------------------------------------------------------------------------


MLP = models.mlp((4, 3, 2))
OUTPUT = nn.Sequential(nn.Linear(4, 4), Failing(torch.ones(3, 4)))


@both
@pytest.mark.parametrize(
    ("model", "x", "layers", "options", "message"),
    [
        (MLP, torch.ones(2, 4), ["1", "relu7"], {}, r"unknown layer 'relu7'; the network has '0', '1'"),
        (Crooked(), torch.ones(2, 4), ["first", "never"], {}, "did not run: 'never'"),
        (MLP, torch.ones(2, 4), "1", {}, r"list of names, as in \['1'\]"),
        (MLP, torch.ones(2, 4), [], {}, "empty"),
        (MLP, torch.ones(0, 4), None, {}, r"\(0, 4\) holds no examples"),
        *((MLP, torch.ones(2, 4), None, {"batch_size": size}, "batch_size") for size in (0, -1, 2.5)),
        (nn.Sequential(nn.LSTM(4, 3)), torch.ones(2, 5, 4), None, {}, "layer '0' returns a tuple"),
        (OUTPUT, torch.ones(2, 4), None, {}, r"layer '1' returns shape \(3, 4\) for 2 examples"),
    ],
)
def test_what_cannot_be_extracted(
    function: str, model: nn.Module, x: torch.Tensor, layers: object, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(function, model, x, layers, **options)


class Moody(nn.Module):
    """Runs a layer for some batches only, or with outputs of changing size."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.extra, self.head = kind, nn.Identity(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "size":
            self.extra(x[:, : int(x[0, 0])])
        elif x[0, 0] > 1:
            self.extra(x)
        return self.head(x)


def test_a_layer_that_runs_for_some_batches_only_is_an_error() -> None:
    x = torch.tensor([[1.0], [2.0]]).repeat(1, 4)
    with pytest.raises(ValueError, match="layer 'extra' ran for 1 of 2 examples only"):
        extract(Moody("skip"), x, batch_size=1)
    with pytest.raises(ValueError, match=r"layer 'extra' returns examples of shape \(2,\), and \(1,\)"):
        extract(Moody("size"), x, batch_size=1)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), "2 examples and 3 labels"),
        (torch.tensor([0, 2]), r"from 0 to 1, got shape \(2,\) torch.int64 from 0 to 2"),
        (torch.tensor([0, -1]), "from -1 to 0"),
        (torch.zeros(2, 1, dtype=torch.int64), r"got shape \(2, 1\)"),
        (torch.zeros(2), "torch.float32"),
    ],
)
def test_labels_that_do_not_fit(y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract_gradients(models.mlp((4, 2)), torch.ones(2, 4), y)
    with pytest.raises(ValueError, match=r"output has shape \(2, 4, 8, 8\)"):
        extract_gradients(nn.Conv2d(3, 4, 3, padding=1), images(2), torch.tensor([0, 1]))


def test_a_block_with_an_empty_shortcut_is_no_layer_of_its_own() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shortcut = nn.Sequential()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shortcut(x) + 1

    found = extract(nn.Sequential(nn.Linear(2, 2), Block()), torch.zeros(3, 2))
    assert list(found) == ["0", "1.shortcut"]
