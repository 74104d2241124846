"""labutils.optim against torch.optim, bit for bit where that is promised."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from labutils import optim

SGD, ADAM = (optim.SGD, torch.optim.SGD), (optim.Adam, torch.optim.Adam)
SHAPES = [(4, 13, 5), (4, 21), (4,)]  # stacks of four models, too

SGD_GRID = [
    {"momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov}
    for momentum, dampening, weight_decay, nesterov in itertools.product(
        (0, 0.5, 0.99), (0, 0.3, 1), (0, 1e-3, 0.1), (False, True)
    )
    if not nesterov or (momentum > 0 and dampening == 0)
]


def make_parameters(
    dtype: torch.dtype = torch.float64, shapes: Iterable[tuple[int, ...]] = SHAPES, seed: int = 0
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def set_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """A gradient that couples nothing, so that a slice of it has the very same bits."""
    for p in parameters:
        value = p.detach()
        p.grad = value * value * value - value * 0.75 + 0.125


def train(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    parameters: list[nn.Parameter],
    steps: int = 60,
    make_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
) -> list[Tensor]:
    optimizer = make(parameters)
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    for _ in range(steps):
        set_gradients(parameters)
        optimizer.step()
        if scheduler:
            scheduler.step()
    assert all(p.isfinite().all() for p in parameters)
    return [p.detach() for p in parameters]


def assert_equal_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "BLOCK", 40)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", SGD_GRID, ids=str)
def test_sgd_has_the_bits_of_torch(options: dict[str, Any], dtype: torch.dtype) -> None:
    ours = train(lambda p: optim.SGD(p, 0.01, **options), make_parameters(dtype))
    torchs = train(lambda p: torch.optim.SGD(p, 0.01, **options), make_parameters(dtype))
    assert_equal_bits(ours, torchs)


@settings(max_examples=40)
@given(data=st.data())
def test_sgd_updates_each_model_of_a_stack_as_its_own_optimizer(data: st.DataObject) -> None:
    nesterov = data.draw(st.booleans())
    four = {"min_size": 4, "max_size": 4}
    momentum = data.draw(st.lists(st.sampled_from([0, 0.3, 0.9, 0.99]), **four))
    if nesterov and not any(momentum):
        momentum[0] = 0.9
    options = {
        "lr": data.draw(st.lists(st.floats(0, 0.05), **four)),
        "momentum": momentum,
        "dampening": 0 if nesterov else data.draw(st.lists(st.floats(0, 1), **four) | st.floats(0, 1)),
        "weight_decay": data.draw(st.lists(st.floats(0, 0.1), **four) | st.just(0.01)),
    }
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    as_tensor = data.draw(st.booleans())
    given_ = {k: torch.tensor(v, dtype=torch.float64) if as_tensor else v for k, v in options.items()}
    stack = train(lambda p: optim.SGD(p, **given_, nesterov=nesterov), make_parameters(dtype), steps=20)
    for k in range(4):
        own = {name: value[k] if isinstance(value, list) else value for name, value in options.items()}
        parameters = [nn.Parameter(p.detach()[k].clone()) for p in make_parameters(dtype)]
        has_nesterov = nesterov and own["momentum"] > 0  # without momentum it is plain descent
        single = train(lambda p, o=own, n=has_nesterov: torch.optim.SGD(p, **o, nesterov=n), parameters, steps=20)
        assert_equal_bits([p[k] for p in stack], single)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("shape", [(4, 300), (300, 4), (1000,), (3, 50, 3, 3), (1, 200), (), (0,)], ids=str)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}], ids=str)
def test_blocks_change_no_bit(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    shapes = [shape, (2, 3), shape]
    ours = train(lambda p: optim.SGD(p, 0.01, **options), make_parameters(shapes=shapes), steps=20)
    torchs = train(lambda p: torch.optim.SGD(p, 0.01, **options), make_parameters(shapes=shapes), steps=20)
    assert_equal_bits(ours, torchs)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("shape", [(4, 300), (4, 2, 30), (4, 30, 2), (100,)], ids=str)
def test_blocks_keep_the_models_of_a_stack_together(shape: tuple[int, ...]) -> None:
    k = shape[0]
    values = torch.linspace(0, 0.05, k, dtype=torch.float64)
    stack = train(lambda p: optim.SGD(p, values, 0.9, 0, values), make_parameters(shapes=[shape]), steps=20)
    for i in range(k):
        parameters = [nn.Parameter(make_parameters(shapes=[shape])[0].detach()[i].clone())]
        lr = values[i].item()
        single = train(lambda p, lr=lr: torch.optim.SGD(p, lr, 0.9, 0, lr), parameters, steps=20)
        assert_equal_bits([stack[0][i]], single)


def test_column_slices_of_a_flat_stack_are_parameters_like_any_other() -> None:
    def sliced(flat: Tensor) -> list[nn.Parameter]:
        return [nn.Parameter(part) for part in flat.split([5, 30, 2], dim=1)]

    (flat,) = make_parameters(shapes=[(4, 37)])
    options = {"lr": [0.01, 0.02, 0.03, 0.04], "momentum": 0.9, "weight_decay": [0, 0.1, 0, 0.01]}
    whole = train(lambda p: optim.SGD(p, **options), [nn.Parameter(flat.detach().clone())])
    parts = flat.detach().clone()
    train(lambda p: optim.SGD(p, **options), sliced(parts))
    assert_equal_bits([parts], whole)


def test_gradients_may_lie_otherwise_in_memory() -> None:
    results = []
    for make in (optim.SGD, torch.optim.SGD):
        (p,) = make_parameters(shapes=[(6, 9)])
        optimizer = make([p], 0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            p.grad = torch.arange(54.0, dtype=torch.float64).view(9, 6).T
            optimizer.step()
        results.append([p.detach()])
    assert_equal_bits(*results)


def test_parameter_groups_have_their_own_options() -> None:
    def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [
            {"params": parameters[:1], "lr": 0.02, "momentum": 0.5},
            {"params": parameters[1:2], "nesterov": True},
            {"params": parameters[2:], "weight_decay": 0.1, "momentum": 0},
        ]

    common = {"lr": 0.01, "momentum": 0.9}
    ours = train(lambda p: optim.SGD(groups(p), **common), make_parameters())
    torchs = train(lambda p: torch.optim.SGD(groups(p), **common), make_parameters())
    assert_equal_bits(ours, torchs)


@pytest.mark.parametrize(("pair", "options"), [(SGD, {"momentum": 0.9, "dampening": 0.5}), (ADAM, {})])
def test_a_parameter_without_gradient_waits_for_its_first_step(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    results = []
    for make in pair:
        parameters = make_parameters()
        optimizer = make(parameters, 0.01, weight_decay=0.01, **options)
        for step in range(20):
            set_gradients(parameters)
            if step < 5 or step == 12:
                parameters[1].grad = None
            optimizer.step()
        results.append([p.detach() for p in parameters])
    assert_equal_bits(*results)


def test_without_gradients_nothing_changes_and_a_gradient_stays_as_it_is() -> None:
    parameters = make_parameters()
    options = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}
    both = [optim.SGD(parameters, 0.1, **options), optim.Adam(parameters, weight_decay=0.1)]
    for optimizer in both:
        optimizer.step()
    assert_equal_bits([p.detach() for p in parameters], [p.detach() for p in make_parameters()])
    for optimizer in both:
        for _ in range(2):
            set_gradients(parameters)
            before = [p.grad.clone() for p in parameters]
            optimizer.step()
            assert_equal_bits([p.grad for p in parameters], before)


def test_closure_computes_the_gradients() -> None:
    results = []
    for make in (optim.SGD, torch.optim.SGD):
        (p,) = make_parameters(shapes=[(5,)])
        optimizer = make([p], 0.1, momentum=0.9)

        def closure(p: nn.Parameter = p, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = p.square().sum()
            loss.backward()
            return loss

        losses = torch.stack([optimizer.step(closure).detach() for _ in range(5)])
        results.append([p.detach(), losses])
    assert_equal_bits(*results)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 20, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=100),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.99**step),
    "warm_up": lambda o: torch.optim.lr_scheduler.LinearLR(o, total_iters=10),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("pair", "options"), [(SGD, {"momentum": 0.9, "weight_decay": 0.01}), (ADAM, {})])
def test_schedulers_drive_both(name: str, pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    assert_equal_bits(
        *(train(lambda p, m=make: m(p, 0.02, **options), make_parameters(), 100, SCHEDULERS[name]) for make in pair)
    )


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_the_learning_rate_of_a_group_may_change_between_steps(make: Any) -> None:
    def half(optimizer: torch.optim.Optimizer, lr: Any) -> list[Tensor]:
        parameters = optimizer.param_groups[0]["params"]
        for value in (lr, [v / 2 for v in lr], torch.tensor(lr) / 4, 0.01):
            optimizer.param_groups[0]["lr"] = value
            set_gradients(parameters)
            optimizer.step()
        return [p.detach() for p in parameters]

    lr = [0.5, 0.25, 0.125, 0.0]
    stack = half(make(make_parameters(torch.float32), 0.1), lr)
    for k in range(4):
        parameters = [nn.Parameter(p.detach()[k : k + 1].clone()) for p in make_parameters(torch.float32)]
        assert_equal_bits([p[k : k + 1] for p in stack], half(make(parameters, 0.1), lr[k : k + 1]))


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda p: optim.SGD(p, 0.02, 0.9, 0.1, 0.01), lambda p: torch.optim.SGD(p, 0.02, 0.9, 0.1, 0.01)),
        (lambda p: optim.SGD(p, [0.01, 0.02, 0.0, 0.03], [0, 0.9, 0.5, 0], 0.5), None),
        (lambda p: optim.Adam(p, 0.02, weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.1)),
        (lambda p: optim.Adam(p, [0.01, 0.02, 0.0, 0.03], decoupled=True), None),
    ],
    ids=["sgd", "sgd stack", "adam", "adam stack"],
)
def test_training_goes_on_from_a_state_dict(make: Any, other: Any) -> None:
    whole = train(make, make_parameters(), steps=60)
    for first, then in [(make, make), (make, other), (other, make)]:
        if first is None or then is None:
            continue
        parameters = make_parameters()
        before = first(parameters)
        for _ in range(25):
            set_gradients(parameters)
            before.step()
        file = io.BytesIO()
        torch.save(before.state_dict(), file)
        file.seek(0)
        parameters = [nn.Parameter(p.detach().clone()) for p in parameters]
        after = then(parameters)
        after.load_state_dict(torch.load(file, weights_only=True))
        continued = train(lambda _, after=after: after, parameters, steps=35)
        assert_equal_bits(continued, whole)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.Adam(p, maximize=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, maximize=True),
        lambda p: torch.optim.SGD(p, 0.1, differentiable=True),
        lambda p: torch.optim.NAdam(p),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.Adam(p),  # for SGD
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),  # for Adam
    ],
    ids=["amsgrad", "maximize", "sgd maximize", "differentiable", "nadam", "adagrad", "adam", "sgd"],
)
def test_a_state_that_means_something_else_is_refused_and_changes_nothing(make: Any) -> None:
    parameters = make_parameters()
    theirs = make(parameters)
    if not theirs.defaults["differentiable"]:
        set_gradients(parameters)
        theirs.step()
    same = optim.Adam if isinstance(theirs, torch.optim.Adam) else optim.SGD
    strange = any(theirs.defaults.get(name) for name in ("maximize", "amsgrad", "differentiable"))
    others = [optim.SGD, optim.Adam] if strange else [{optim.SGD: optim.Adam, optim.Adam: optim.SGD}[same]]
    for kind in others:
        parameters = make_parameters()
        ours = kind(parameters, 0.01, weight_decay=0.1)
        train(lambda _, ours=ours: ours, parameters, steps=2)
        before = copy.deepcopy(ours.state_dict())
        with pytest.raises(ValueError, match=r"is not supported|belongs to another optimizer"):
            ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_a_group_cannot_ask_for_what_is_not_supported(make: Any) -> None:
    for name in ("maximize", "amsgrad", "differentiable"):
        with pytest.raises(ValueError, match=f"{name} is not supported"):
            make([{"params": make_parameters(), name: True}], 0.1)


def test_decoupled_decay_travels_with_the_state() -> None:
    makes = [
        lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.3),
        lambda p: optim.Adam(p, 0.02, weight_decay=0.3, decoupled=True),
        lambda p: optim.Adam([{"params": p, "decoupled": True}], 0.02, weight_decay=0.3),
    ]
    whole = train(makes[0], make_parameters(), steps=40)
    for first, then in itertools.product(makes, [*makes, optim.Adam, torch.optim.Adam]):
        parameters = make_parameters()
        before = first(parameters)
        train(lambda _, before=before: before, parameters, steps=15)
        after = then(parameters)
        after.load_state_dict(before.state_dict())
        assert_equal_bits(train(lambda _, after=after: after, parameters, steps=25), whole)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight_decay", [0, 1e-3, 0.5])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99), (0.9, 0.0)])
@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_adam_has_the_bits_of_torch(
    eps: float, betas: tuple[float, float], weight_decay: float, decoupled: bool
) -> None:
    reference = torch.optim.AdamW if decoupled else torch.optim.Adam
    options = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
    for dtype in (torch.float64, torch.float32):
        ours = train(lambda p: optim.Adam(p, 0.01, **options, decoupled=decoupled), make_parameters(dtype))
        torchs = train(lambda p: reference(p, 0.01, **options), make_parameters(dtype))
        assert_equal_bits(ours, torchs)


@settings(max_examples=20)
@given(
    lr=st.lists(st.floats(0, 0.05), min_size=4, max_size=4) | st.just(0.01),
    weight_decay=st.lists(st.floats(0, 0.1), min_size=4, max_size=4) | st.just(0.01),
    decoupled=st.booleans(),
)
def test_adam_updates_each_model_of_a_stack_as_its_own_optimizer(lr: Any, weight_decay: Any, decoupled: bool) -> None:
    reference = torch.optim.AdamW if decoupled else torch.optim.Adam
    stack = train(
        lambda p: optim.Adam(p, lr, weight_decay=weight_decay, decoupled=decoupled), make_parameters(), steps=20
    )
    for k in range(4):
        lr_k, decay_k = (v[k] if isinstance(v, list) else v for v in (lr, weight_decay))
        parameters = [nn.Parameter(p.detach()[k].clone()) for p in make_parameters()]
        single = train(lambda p, a=lr_k, b=decay_k: reference(p, a, weight_decay=b), parameters, steps=20)
        assert_equal_bits([p[k] for p in stack], single)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("lr", [0.01, [0.0, 0.01, 0.02, 0.03]])
def test_blocks_leave_adam_alone(lr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(4, 300), (4, 2), (4, 30, 5)]
    results = []
    for block in (40, 10**9):
        monkeypatch.setattr(optim, "BLOCK", block)
        make = lambda p: optim.Adam(p, lr, weight_decay=0.01)  # noqa: E731
        results.append(train(make, make_parameters(shapes=shapes), steps=20))
    assert_equal_bits(*results)


@pytest.mark.parametrize(
    ("pair", "options"),
    [
        (SGD, {"lr": -0.1}),
        (SGD, {"momentum": -0.9}),
        (SGD, {"weight_decay": -1e-4}),
        (SGD, {"nesterov": True}),
        (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        (ADAM, {"lr": -0.1}),
        (ADAM, {"eps": -1e-8}),
        (ADAM, {"weight_decay": -1}),
        (ADAM, {"betas": (1.0, 0.9)}),
        (ADAM, {"betas": (0.9, -0.1)}),
    ],
    ids=str,
)
def test_what_torch_refuses_is_refused(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    messages = []
    for make in pair:
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            make(make_parameters(), **options)
        messages.append(str(refused.value))
    assert messages[0].startswith(messages[1])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (optim.SGD, {"lr": [0.1, -0.1, 0.1, 0.1]}, r"Invalid learning rate: \[0.1, -0.1, 0.1, 0.1\]"),
        (optim.SGD, {"lr": float("nan")}, "Invalid learning rate: nan"),
        (optim.SGD, {"momentum": [0, 0, 0, -1]}, "Invalid momentum value"),
        (optim.SGD, {"weight_decay": torch.tensor([0.0, 0.0, 0.0, -1.0])}, "Invalid weight_decay value"),
        (optim.SGD, {"momentum": [0.0] * 4, "nesterov": True}, "Nesterov momentum requires a momentum"),
        (optim.SGD, {"momentum": 0.9, "dampening": [0, 0, 0, 0.5], "nesterov": True}, "zero dampening"),
        (optim.SGD, {"lr": [0.1, 0.2]}, r"lr has 2 values.*leading dimension 2; parameter 0 has shape \(4, 13, 5\)"),
        (optim.SGD, {"lr": []}, r"lr must be one number or one number a model"),
        (optim.SGD, {"lr": "fast"}, r"lr = 'fast': one number"),
        (optim.SGD, {"lr": None}, r"lr = None: one number"),
        (optim.SGD, {"momentum": [[0.9] * 4]}, r"momentum must be one number or one number a model.*\(1, 4\)"),
        (optim.Adam, {"lr": [0.1, 0.2]}, "lr has 2 values"),
        (optim.Adam, {"weight_decay": [0.1]}, "weight_decay has 1 values"),
        (optim.Adam, {"eps": [1e-8] * 4}, "eps must be one number for all models"),
        (optim.Adam, {"betas": ([0.9] * 4, 0.999)}, r"betas\[0\] must be one number for all models"),
    ],
    ids=str,
)
def test_values_that_fit_no_stack_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(make_parameters(), **options)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.array, torch.tensor, lambda v: torch.tensor(v).double()])
def test_numbers_of_every_kind_are_numbers(number: Callable[[float], Any]) -> None:
    for value, ours, torchs in [
        ({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, optim.SGD, torch.optim.SGD),
        ({"lr": 0.1, "eps": 1e-3, "weight_decay": 0.01, "betas": (0.5, 0.9)}, optim.Adam, torch.optim.Adam),
    ]:
        given_ = {k: tuple(map(number, v)) if k == "betas" else number(v) for k, v in value.items()}
        plain = {k: tuple(map(float, v)) if k == "betas" else float(v) for k, v in given_.items()}
        optimizers: list[torch.optim.Optimizer] = []
        mine = train(lambda p: optimizers.append(ours(p, **given_)) or optimizers[0], make_parameters(), steps=9)  # noqa: B023
        assert_equal_bits(mine, train(lambda p: torchs(p, **plain), make_parameters(), steps=9))  # noqa: B023
        file = io.BytesIO()
        torch.save(optimizers[0].state_dict(), file)
        file.seek(0)
        torch.load(file, weights_only=True)  # holds nothing but plain numbers and tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_other_types_of_parameters_are_refused(make: Any, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"parameter 1 is {dtype}"):
        make([*make_parameters(shapes=[(2,)]), *make_parameters(dtype, shapes=[(2,)])])


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_nothing_has_moved_when_a_step_is_refused(make: Any) -> None:
    first, second = make_parameters(shapes=[(2, 3), (2, 3)])
    optimizer = make([{"params": [first]}, {"params": [second]}], 0.1)
    optimizer.param_groups[1]["lr"] = [0.1, 0.2, 0.3]
    set_gradients([first, second])
    before = first.detach().clone()
    with pytest.raises(ValueError, match="lr has 3 values"):
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.1
    second.grad = second.detach().to_sparse()
    with pytest.raises(ValueError, match="sparse gradients"):
        optimizer.step()
    assert torch.equal(first, before)
    assert not optimizer.state


def test_a_group_that_is_refused_leaves_no_trace() -> None:
    first, second = make_parameters(shapes=[(2, 3), (2, 3)])
    optimizer = optim.SGD([first], 0.1)
    with pytest.raises(ValueError, match="Invalid learning rate"):
        optimizer.add_param_group({"params": [second], "lr": -1})
    with pytest.raises(ValueError, match=r"parameter 1 has shape \(\)"):
        optimizer.add_param_group({"params": [second, *make_parameters(shapes=[()])], "lr": [0.1, 0.2]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [second], "lr": [0.1, 0.2]})
    assert len(optimizer.param_groups) == 2
