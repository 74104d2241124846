"""Stochastic gradient descent and Adam, written out: the reference for "write the update step".

Both take the place of their namesakes in `torch.optim` (parameter groups, `state_dict`, schedulers), and train many
models at once: when every parameter is a *stack* with leading dimension K, one slice a model, a hyperparameter may be a
sequence of K values. What else torch's optimizers offer (`maximize`, `amsgrad`, …) is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["SGD", "Adam"]

Value = float | Sequence[float] | Tensor
"""A hyperparameter: one number for all, or K numbers, one for each model of a stack."""

Tensors = Sequence[Tensor]

BLOCK = 2**19  # parameters a step works on at a time


class _StackedOptimizer(torch.optim.Optimizer):
    """What both share: hyperparameters with one value a model, their checks, and the loop over groups."""

    per_model: tuple[str, ...] = ()  # the hyperparameters that may hold one value a model
    kept: frozenset[str] = frozenset()  # what is kept of each parameter from step to step

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group `{"params": …, "lr": …}`; what is left out takes the optimizer's value.

        Raises:
            ValueError: a hyperparameter is out of range, not supported, or does not fit the parameters' leading
                dimension; parameters of another type than float32 and float64.
        """
        super().add_param_group(param_group)
        try:
            self._prepare(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, such as one of torch's own optimizer; one that means something else changes nothing."""
        for group in state["param_groups"]:  # torch's may lack a setting
            for name, value in (state.get("defaults") or self.defaults).items():
                group.setdefault(name, value)
            self._prepare(group)
        strange = {name for each in state["state"].values() for name in each} - self.kept
        if strange:
            raise ValueError(
                f"a state with {', '.join(sorted(strange))} belongs to another optimizer, or to an option"
                " that is not supported"
            )
        super().__setstate__(state)

    def _prepare(self, group: dict[str, Any]) -> None:
        """Make plain numbers or vectors of the hyperparameters, and refuse what this optimizer cannot do."""
        for name in ("maximize", "amsgrad", "differentiable"):
            if group.get(name):
                raise ValueError(f"{name} is not supported here; torch.optim has it")
        for i, p in enumerate(group["params"]):
            if p.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"parameter {i} is {p.dtype}: float32 or float64 is needed; torch.optim takes others")
        for name in self.per_model:
            group[name] = _number_or_vector(name, group[name])
        self._check(group)
        _check_stack(group["params"], {name: group[name] for name in self.per_model})

    def _check(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters that are out of range."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, in place; return what the closure that computes them returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        for group in self.param_groups:  # the values may be others than at the start: all are checked before any step
            values = {name: _at_step(name, group[name]) for name in self.per_model}
            params = [p for p in group["params"] if p.grad is not None]
            stacked = any(map(_is_vector, values.values()))
            if stacked:
                _check_stack(params, values)
            if any(p.grad.is_sparse for p in params):
                raise ValueError("sparse gradients are not supported here; torch.optim takes them")
            work.append((group | values, params, stacked))
        for group, params, stacked in work:
            for when, rows in self._rows(params, group).items():
                for block in _blocks(rows, stacked):
                    self._update(group, when, *block)
        return loss

    def _rows(self, params: list[Tensor], group: dict[str, Any]) -> dict[int, list[tuple[Tensor, ...]]]:
        """Rows of p, its gradient and what is kept from step to step, under what the step number decides."""
        raise NotImplementedError

    def _update(self, group: dict[str, Any], when: int, p: Tensors, g: Tensors, *state: Tensors) -> None:
        """The update step: parameters p and their gradients g, as parallel lists."""
        raise NotImplementedError


class SGD(_StackedOptimizer):
    """Stochastic gradient descent with weight decay λ, momentum μ, dampening τ and Nesterov's variant.

    One step with learning rate γ, in the order of `torch.optim.SGD` and, on the CPU, with its very bits::

        g ← ∇L + λ θ
        b ← g                       at a parameter's first step (not dampened)
        b ← μ b + (1 − τ) g         from then on
        g ← g + μ b (Nesterov), else b
        θ ← θ − γ g

    Without momentum (μ = 0) there is no b, and dampening has no effect. In a stack each model is updated as an
    optimizer of its own would do it, bit for bit as long as its weights are finite; some may have no momentum.

    Args:
        params: parameters, or parameter groups (dicts), as in `torch.optim`.
        lr, momentum, dampening, weight_decay: γ, μ and λ ≥ 0, and τ. Each may be a sequence or 1-D tensor of K values,
            one a model; then every parameter of the group has leading dimension K. (Schedulers of torch set one.)
        nesterov: step along g + μ b in place of b; needs a momentum and no dampening. Shared by all models.

    Raises:
        ValueError: a negative value, Nesterov without momentum or with dampening, or parameters that are no
            stack of as many models as there are values.

    Example:
        >>> theta = torch.nn.Parameter(torch.tensor([[1.0], [1.0]]))  # two models of one weight each
        >>> optimizer = SGD([theta], lr=[0.1, 0.5])
        >>> theta.square().sum().backward()  # the gradient is 2 for both
        >>> optimizer.step()
        >>> theta.flatten().tolist()
        [0.800000011920929, 0.0]
    """

    per_model = ("lr", "momentum", "dampening", "weight_decay")
    kept = frozenset({"momentum_buffer"})

    def __init__(
        self,
        params: Iterable[Any],
        lr: Value = 1e-3,
        momentum: Value = 0,
        dampening: Value = 0,
        weight_decay: Value = 0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        _refuse_negative("learning rate", group["lr"])
        _refuse_negative("momentum value", group["momentum"])
        _refuse_negative("weight_decay value", group["weight_decay"])
        if group["nesterov"] and (not _any(group["momentum"]) or _any(group["dampening"])):
            raise ValueError(
                "Nesterov momentum requires a momentum and zero dampening, "
                f"got momentum {_show(group['momentum'])} and dampening {_show(group['dampening'])}"
            )

    def _rows(self, params: list[Tensor], group: dict[str, Any]) -> dict[int, list[tuple[Tensor, ...]]]:
        if not _any(group["momentum"]):
            return {False: [(p, p.grad) for p in params]}
        rows = {True: [], False: []}  # is it the first step?
        for p in params:
            state = self.state[p]
            first = state.get("momentum_buffer") is None
            if first:
                state["momentum_buffer"] = torch.zeros_like(p)
            rows[first].append((p, p.grad, state["momentum_buffer"]))
        return rows

    def _update(self, group: dict[str, Any], first: bool, p: Tensors, g: Tensors, *state: Tensors) -> None:
        lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        gradient = g

        if _any(weight_decay):
            g = _add(g, weight_decay, p)

        if _any(momentum):
            (b,) = state
            if first:
                torch._foreach_copy_(b, g)
            else:
                torch._foreach_mul_(b, _factors(momentum, b))
                _add_(b, _undamped(momentum, group["dampening"]), g)
            if not group["nesterov"]:
                g = b
            elif g is gradient:
                g = _add(g, momentum, b)
            else:  # a temporary already: no second one
                _add_(g, momentum, b)

        _add_(p, -lr, g)


class Adam(_StackedOptimizer):
    """Adam (Kingma & Ba 2015) and, with `decoupled=True`, AdamW (Loshchilov & Hutter 2019).

    Step t = 1, 2, … with learning rate γ, weight decay λ and the running means m and v, which start at zero::

        g ← ∇L + λ θ       (decoupled: g ← ∇L and θ ← θ − γ λ θ)
        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        θ ← θ − γ m̂ / (√v̂ + ε)       with m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ)

    On the CPU equal bit for bit to `torch.optim.Adam` and `AdamW`, and so is each model of a stack to an optimizer of
    its own as long as its weights are finite. `params`, `lr` and `weight_decay` are as for `SGD`.

    Args:
        betas, eps: (β₁, β₂), each in [0, 1), and ε ≥ 0.
        decoupled: let the weights decay beside the gradient's step, not through it.

    Raises:
        ValueError: a value out of range, or parameters that are no stack of as many models as there are values.

    Example:
        >>> theta = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
        >>> optimizer = Adam([theta], lr=0.25)
        >>> theta.square().sum().backward()
        >>> optimizer.step()  # the first step is γ long in every coordinate
        >>> theta.tolist()
        [2.75, -1.75]
    """

    per_model = ("lr", "weight_decay")
    kept = frozenset({"step", "exp_avg", "exp_avg_sq"})

    def __init__(
        self,
        params: Iterable[Any],
        lr: Value = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Value = 0,
        decoupled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled,  # torch's own name
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        group["eps"] = _number("eps", group["eps"])
        group["betas"] = tuple(_number(f"betas[{i}]", beta) for i, beta in enumerate(group["betas"]))
        if "decoupled" in group:
            group["decoupled_weight_decay"] = group.pop("decoupled")
        _refuse_negative("learning rate", group["lr"])
        _refuse_negative("epsilon value", group["eps"])
        _refuse_negative("weight_decay value", group["weight_decay"])
        for i, beta in enumerate(group["betas"]):
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta} (must be in [0, 1))")

    def _rows(self, params: list[Tensor], group: dict[str, Any]) -> dict[int, list[tuple[Tensor, ...]]]:
        rows: dict[int, list[tuple[Tensor, ...]]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            state["step"] = int(state["step"]) + 1
            rows.setdefault(state["step"], []).append((p, p.grad, state["exp_avg"], state["exp_avg_sq"]))
        return rows

    def _update(self, group: dict[str, Any], t: int, p: Tensors, g: Tensors, *state: Tensors) -> None:
        lr, weight_decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        m, v = state

        if _any(weight_decay):
            if group["decoupled_weight_decay"]:
                torch._foreach_mul_(p, _factors(1 - lr * weight_decay, p))
            else:
                g = _add(g, weight_decay, p)

        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, value=1 - beta2)
        del g  # with an L2 term it is a temporary: the next one may have its memory

        size = lr / (1 - beta1**t)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, (1 - beta2**t) ** 0.5)
        torch._foreach_add_(denominator, group["eps"])
        if _is_vector(size):
            torch._foreach_addcdiv_(p, torch._foreach_mul(m, _factors(-size, m)), denominator)
        else:
            torch._foreach_addcdiv_(p, m, denominator, value=-size)


def _number_or_vector(name: str, value: Value) -> float | Tensor:
    """One number as a float; K numbers, one a model, as a float64 tensor of shape (K,)."""
    if type(value) in (int, float):
        return value
    try:
        vector = torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} = {value!r}: one number, or one number a model, is needed") from None
    if vector.ndim == 0:
        return float(vector)
    if vector.ndim > 1 or len(vector) == 0:
        raise ValueError(f"{name} must be one number or one number a model (1-D), got shape {tuple(vector.shape)}")
    return vector


def _is_vector(value: float | Tensor) -> bool:
    return isinstance(value, Tensor)


def _any(value: float | Tensor) -> bool:
    """Whether the hyperparameter differs from zero (for any model)."""
    return any(value.tolist()) if _is_vector(value) else value != 0


def _at_step(name: str, value: Value) -> float | Tensor:
    value = _number_or_vector(name, value)
    return value if _any(value) else 0


def _show(value: float | Tensor) -> str:
    return str(value.tolist() if _is_vector(value) else value)


def _number(name: str, value: Any) -> float:
    value = _number_or_vector(name, value)
    if _is_vector(value):
        raise ValueError(f"{name} must be one number for all models, got {_show(value)}")
    return value


def _refuse_negative(name: str, value: float | Tensor) -> None:
    values = value.tolist() if _is_vector(value) else [value]
    if not all(v >= 0 for v in values):  # NaN fails too
        raise ValueError(f"Invalid {name}: {_show(value)} (must be 0 or greater)")


def _check_stack(params: list[Tensor], values: dict[str, float | Tensor]) -> None:
    for name, value in values.items():
        for i, p in enumerate(params) if _is_vector(value) else ():
            if p.ndim == 0 or len(p) != len(value):
                raise ValueError(
                    f"{name} has {len(value)} values, one a model, so every parameter of its group must be a "
                    f"stack with leading dimension {len(value)}; parameter {i} has shape {tuple(p.shape)}"
                )


def _undamped(momentum: float | Tensor, dampening: float | Tensor) -> float | Tensor:
    """1 − τ, the weight of a new gradient; 1 for models without momentum, which know no dampening."""
    if _is_vector(momentum) and _any(dampening):
        return torch.where(momentum == 0, torch.ones_like(momentum), 1 - dampening)
    return 1 - dampening


def _blocks(rows: list[tuple[Tensor, ...]], stacked: bool) -> Iterator[list[Tensors]]:
    """Cut rows of same-shaped tensors into blocks, and hand each block over as parallel lists.

    Blocks keep a step's temporaries in the processor's cache: a step on a large stack is up to three times as fast.
    """
    if rows and (not rows[0][0].is_cpu or sum(row[0].numel() for row in rows) <= BLOCK):
        yield list(zip(*rows, strict=True))
        return
    block: list[tuple[Tensor, ...]] = []
    size = 0
    for row in rows:
        for piece in _pieces(row, stacked):
            block.append(piece)
            size += piece[0].numel()
            if size >= BLOCK:
                yield list(zip(*block, strict=True))
                block, size = [], 0
    if block:
        yield list(zip(*block, strict=True))


def _pieces(row: tuple[Tensor, ...], stacked: bool) -> Iterable[tuple[Tensor, ...]]:
    p = row[0]
    dims = range(1 if stacked else 0, p.ndim)  # a stack keeps its models together
    if p.numel() <= BLOCK or not dims:
        return [row]
    dim = max(dims, key=lambda d: p.shape[d])
    length = max(1, BLOCK * p.shape[dim] // p.numel())
    return zip(*(t.split(length, dim) for t in row), strict=True)


def _factor(value: float | Tensor, tensor: Tensor) -> float | Tensor:
    """What `tensor` is multiplied by: the number, or K numbers shaped (K, 1, …, 1)."""
    if not _is_vector(value):
        return value
    return value.to(tensor.device, tensor.dtype).view(-1, *[1] * (tensor.ndim - 1))


def _factors(value: float | Tensor, tensors: Tensors) -> Any:
    return [_factor(value, t) for t in tensors] if _is_vector(value) else value


# Adding a multiple rounds once in both branches (a fused multiply-add), hence stacks equal single models.
def _add(tensors: Tensors, value: float | Tensor, others: Tensors) -> Tensors:
    """`tensors + value * others`, tensor by tensor."""
    if _is_vector(value):
        return torch._foreach_addcmul(tensors, others, _factors(value, tensors))
    return torch._foreach_add(tensors, others, alpha=value)


def _add_(tensors: Tensors, value: float | Tensor, others: Tensors) -> None:
    """`tensors += value * others`, in place."""
    if _is_vector(value):
        torch._foreach_addcmul_(tensors, others, _factors(value, tensors))
    else:
        torch._foreach_add_(tensors, others, alpha=value)
