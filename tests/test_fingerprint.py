"""Fingerprints see every bit of data, and of functions what they do: not where, how and under which name."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from labutils import data, models, training
from labutils.fingerprint import fingerprint


def test_every_bit_counts() -> None:
    values = [
        torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(1, 2), torch.tensor([0.0, -0.0]),
        torch.zeros(0), True, None, "0", torch.zeros(2, dtype=torch.bfloat16), torch.tensor(0.0), [torch.zeros(2)],
        [[torch.zeros(2)]], 0, 0.0, -0.0, [], {}, [[], []], {"a": 1}, {"a": 1.0}, {"b": 1}, "ab", {"a"}, set(), {"b"},
        ["a", "b"], fingerprint, training.fit, range(3), Path("a"), torch.float32, 1j, b"a",
        models.mlp((2, 3), seed=1), models.mlp((2, 3), seed=2), nn.ReLU, nn.ReLU(), nn.Tanh(), training.Measurements,
        torch.Generator().manual_seed(1), torch.Generator().manual_seed(2), torch.tanh, np.exp, np.log, np, torch,
    ]  # fmt: skip
    found = [fingerprint(value) for value in values]
    assert len(set(found)) == len(found)
    assert fingerprint(np.zeros(2)) == fingerprint(torch.zeros(2, dtype=torch.float64))
    assert fingerprint(np.float64(1.5)) == fingerprint(1.5)
    assert fingerprint(np.array(["a"])) == fingerprint(["a"])
    assert fingerprint(torch.tensor(5).expand(1)) == fingerprint(torch.tensor([5]))
    assert fingerprint(torch.tensor(5).expand(2, 3)) == fingerprint(torch.full((2, 3), 5))
    assert fingerprint(torch.arange(6).view(2, 3).t()) == fingerprint(torch.arange(6).view(2, 3).t().contiguous())


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in ()), [{"a": sys.stdout}]])
def test_what_cannot_be_taken_apart_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"a \w+ has no fingerprint"):
        fingerprint(value)


BASE = """
from labutils import data, training
import torch
import torch.nn.functional as F

limit, scale, unused = 3, [1.0], 0

def weigh(stack, power=2):
    return scale[0] * stack.size ** power

class Hook(training.Measurements):
    level = 1

    def __call__(self, epoch, stack):
        if epoch < limit:
            super().__call__(epoch, stack)

    @property
    def size(self):
        return [len(x) for x in self.epochs]

def make(n):
    def measure(epoch, stack):
        from labutils import models
        return weigh(stack) + n + F.relu(models.build(epoch))
    return measure

hook = Hook(lambda epoch, stack: weigh(stack) @ dataset, every=2)
dataset = data.Split(torch.eye(2), torch.eye(2))
measure = make(1)
"""


def hooks(source: str = BASE) -> list[str]:
    """The fingerprints of what a notebook defines."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), space)
    return [fingerprint([space["hook"], space["hook"].state_dict()]), fingerprint(space["measure"])]


@pytest.mark.parametrize(
    ("old", "new", "hook", "measure"),
    [
        ("[1.0], 0", "[1.0], 1", False, False),
        ("power=2):", "power=2):\n    'Doc.'\n    # comment", False, False),
        ("class Hook(training.Measurements):", "# new\nclass Hook(training.Measurements):\n    'Doc.'", False, False),
        ("def __call__(self, epoch, stack):", "def __call__(self, epoch, stack):\n        'Doc.'", False, False),
        ("scale[0] * stack", "scale[0] + stack", True, True),
        ("power=2", "power=3", True, True),
        ("[1.0]", "[1.5]", True, True),
        ("unused = 3", "unused = 4", True, False),
        ("level = 1", "level = 2", True, False),
        ("len(x) for", "len(x) + 1 for", True, False),
        ("eye(2))", "ones(2, 2))", True, False),
        ("every=2", "every=3", True, False),
        ("@ dataset", "@ dataset.x", True, False),
        ("make(1)", "make(2)", False, True),
        ("+ F.relu", "+ F.gelu", False, True),
        ("models.build", "models.mlp", False, True),
    ],
)
def test_functions_count_by_what_they_do_and_use(old: str, new: str, hook: bool, measure: bool) -> None:
    assert old in BASE
    assert [a != b for a, b in zip(hooks(), hooks(BASE.replace(old, new)), strict=True)] == [hook, measure]


def test_lambdas_of_one_line_are_told_apart() -> None:
    pair = [lambda x: x + 1, lambda x: x + 2]
    more = [lambda *x: x + 1, lambda **x: x + 1, lambda y: y + 1, functools.partial(pair[0], 1), pair, [pair[0]] * 2]
    assert all(fingerprint(a) != fingerprint(b) for a, b in itertools.combinations([*pair, *more], 2))
    assert fingerprint(pair[0]) == fingerprint(eval("lambda x: (x  +  1)"))


def test_a_module_of_the_users_own_counts_by_what_is_used_of_it(tmp_path: Path, monkeypatch) -> None:
    def found(source: str) -> str:
        module = ModuleType("tools")
        module.__file__ = str(tmp_path / "tools.py")
        monkeypatch.setitem(sys.modules, "tools", module)
        exec(compile(source, module.__file__, "exec"), vars(module))
        return fingerprint(eval("lambda x: tools.f(x)", {"tools": module, "__name__": "__main__"}))

    assert found("def f(x): return x") == found("def f(x): return x\ndef g(x): return x") != found("def f(x): return 1")


def test_networks_count_with_their_own_classes() -> None:
    def network(body: str) -> nn.Module:
        space = {"nn": nn, "__name__": "__main__"}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {body}", space)
        return nn.Sequential(space["Net"]())

    assert fingerprint(network("x")) == fingerprint(network("x")) != fingerprint(network("x + 1"))


def test_other_processes_find_the_same() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\nfrom tests.test_fingerprint import *\n"
    code += "print(*hooks(), fingerprint([{'a', 'b', 'c'}, frozenset('abc'), models.mlp((2, 3), seed=1), data.Split]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = fingerprint([{"a", "b", "c"}, frozenset("abc"), models.mlp((2, 3), seed=1), data.Split])
    assert done.stdout.split() == [*hooks(), here]
