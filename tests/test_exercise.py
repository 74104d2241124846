"""The helpers of checks, and every notebook's checks: what they say to typical wrong answers."""

from __future__ import annotations

import builtins
import functools
import inspect
import math
import re
import symtable
from collections.abc import Callable, Iterator
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from torch import nn

from labutils import backprop, exercise, models, similarity
from labutils.exercise import AnswerUsedError, Mistake, attempt, compare, same_form, without
from tests.conftest import ROOT

NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}

# --- What the checks of a notebook need ---------------------------------------------------------------------------


def names_in(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell reads from other cells, and those that it gives a meaning to."""
    top = symtable.symtable(source, "cell", "exec")
    given = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    read, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        read |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (s.is_global() or table is top)}
    return read - given, given


def nbgrader_of(cell: NotebookNode) -> NotebookNode:
    return cell.metadata.get("nbgrader", {})


def exercise_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The notebook's exercises and what they depend on, nothing else: determined by the names that cells read.

    Of the experiments nothing remains, as no exercise reads a result.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kept = {at for at, cell in enumerate(code) if nbgrader_of(cell)}
    names = [names_in(cell.source) for cell in code]
    known = set(vars(builtins))
    open_ones = sorted(kept)
    while open_ones:
        at = open_ones.pop()
        for name in names[at][0] - known:
            places = [before for before in range(at) if name in names[before][1]]
            if places and places[-1] not in kept:
                kept.add(places[-1])
                open_ones.append(places[-1])
    return [code[at] for at in sorted(kept)]


def exercises_of(name: str) -> Iterator[tuple[NotebookNode, list[NotebookNode]]]:
    """Each exercise of a notebook, with its checks."""
    solution, checks = None, []
    for cell in NOTEBOOKS[name].cells:
        if nbgrader_of(cell).get("solution"):
            if solution:
                yield solution, checks
            solution, checks = cell, []
        elif nbgrader_of(cell).get("grade"):
            checks.append(cell)
    assert solution
    yield solution, checks


EXERCISES = {
    nbgrader_of(solution)["grade_id"]: (name, solution, checks)
    for name in NOTEBOOKS
    for solution, checks in exercises_of(name)
}
each_exercise = pytest.mark.parametrize("key", list(EXERCISES))


class Desk:
    """A notebook's exercise, on which answers are tried."""

    def __init__(self, key: str) -> None:
        name, self.solution, self.checks = EXERCISES[key]
        self.names: dict[str, Any] = {"__name__": "__main__"}
        for cell in exercise_cells(NOTEBOOKS[name]):
            if not nbgrader_of(cell).get("grade"):
                exec(compile(cell.source, cell.id, "exec"), self.names)
        [self.function] = re.findall(r"(?m)^def (\w+)", self.solution.source)
        self.right = self.names[self.function]

    def check(self, answer: Callable[..., Any]) -> None:
        names = self.names | {self.function: answer}
        for cell in self.checks:
            exec(compile(cell.source, cell.id, "exec"), names)

    def check_text(self, source: str) -> None:
        names = self.names.copy()
        exec(compile(source, "answer", "exec"), names)
        self.check(names[self.function])

    def derived(self, change: Callable[[Any], Any]) -> Callable[..., Any]:
        """The right function, whose result is changed."""
        return functools.wraps(self.right)(lambda *args, **kwargs: change(self.right(*args, **kwargs)))


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Desk]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABUTILS_RUN_DIR", str(tmp_path_factory.mktemp("run")))
        yield functools.cache(Desk)


def zeros(result: Any) -> Any:
    match result:
        case torch.Tensor():
            return torch.zeros_like(result)
        case np.ndarray():
            return np.zeros_like(result)
        case dict():
            return {key: zeros(value) for key, value in result.items()}
        case list() | tuple():
            return type(result)(map(zeros, result))
        case nn.Module():
            nn.utils.vector_to_parameters(torch.zeros(sum(p.numel() for p in result.parameters())), result.parameters())
            return result
        case torch.optim.Optimizer():
            return torch.optim.SGD(result.param_groups[0]["params"], lr=0.0)
    return type(result)(0)


def misshapen(result: Any) -> Any:
    match result:
        case torch.Tensor():
            return result.unsqueeze(0)
        case np.ndarray():
            return result.T
        case dict():
            return dict(list(result.items())[1:])
        case list() | tuple():
            return result[:-1] if isinstance(result, list) else result[0]
        case nn.Module():
            return nn.Linear(2, 2)
        case torch.optim.Optimizer():
            return result.param_groups
    return [result, result]


# --- What the checks say ------------------------------------------------------------------------------------------


@each_exercise
def test_the_right_answer_passes(key: str, desks: Callable[[str], Desk]) -> None:
    desks(key).check(desks(key).right)


@each_exercise
def test_what_is_not_written_yet_is_called_so(key: str, desks: Callable[[str], Desk]) -> None:
    source = re.sub(
        r"(?s)### BEGIN SOLUTION.*### END SOLUTION", "raise NotImplementedError()", desks(key).solution.source
    )
    with pytest.raises(Mistake, match=f"^{desks(key).function} is not written yet: replace"):
        desks(key).check_text(source)


@each_exercise
def test_none_zeros_and_wrong_shapes_are_explained(key: str, desks: Callable[[str], Desk]) -> None:
    desk = desks(key)
    with pytest.raises(Mistake, match=f"^{desk.function} returns None: does it end with `return`"):
        desk.check(desk.derived(lambda result: None))
    with pytest.raises(AssertionError, match=r": (first wrong entry|-?\d).*, expected .*\d") as error:
        desk.check(desk.derived(zeros))
    assert re.search("0, expected|wrong ones among|after three steps", str(error.value))
    with pytest.raises(AssertionError, match=r"shape \(|lacks the keys|your list has|^return ") as error:
        desk.check(desk.derived(misshapen))
    assert re.search(r"expected|not a|has|return three|return two", str(error.value))


ANSWERED = {
    key: answer
    for key, (_, _, checks) in EXERCISES.items()
    for check in checks
    for answer in re.findall(
        r'"((?:torch\.)?\w+\.\w+)"', "".join(re.findall(r"(?s)attempt\(\s*\w+,(.*?)\)", check.source))
    )
}


@pytest.mark.parametrize("key", list(ANSWERED))
def test_the_answer_of_labutils_cannot_be_handed_in(key: str, desks: Callable[[str], Desk]) -> None:
    def borrowed(*args: Any, **kwargs: Any) -> Any:
        return exercise._find(ANSWERED[key])(*args, **kwargs)

    borrowed.__signature__ = inspect.signature(desks(key).right)  # type: ignore[attr-defined]
    with pytest.raises(AnswerUsedError, match=r"this exercise asks you to write what .* does: do not call it"):
        desks(key).check(borrowed)


@pytest.mark.parametrize(
    ("key", "old", "new", "words"),
    [
        (
            "delta-recursion",
            "[-2 * (y",
            "[2 * (y",
            r"δ\[\d\] of \d layers: first wrong entry .* Likely cause: the sign",
        ),
        ("delta-recursion", "[-2 * (y", "[-(y", "all 2 times too small"),
        ("delta-recursion", " * (1 - below**2)", "", "f′ of this layer is missing"),
        ("delta-recursion", "return delta", "return delta[::-1]", r"δ\[\d\] of \d layers: "),
        ("update-step", "g + weight_decay * p", "g", r"\(weight decay\): .*Check that the weight decay is part"),
        ("update-step", "momentum * buffer + g\n", "momentum * buffer + (1 - momentum) * g\n", "Check the buffer"),
        ("update-step", "if nesterov else buffer", "if False else buffer", "Check the direction"),
        ("update-step", "g = g + weight_decay * p", "g += weight_decay * p", "changes its argument g: work on a copy"),
        ("count-parameters", "(widths[i] + 1)", "widths[i]", "the biases are missing"),
        ("softmax-floor", "np.log(", "(", "the logarithm is missing"),
        ("softmax-floor", "1 + (classes - 1) / np.e", "classes", "equal probabilities"),
        ("path-coordinates", "points - points.mean(0)", "points + 0", "Are the points centered"),
        ("path-coordinates", "vectors[:, ::-1]", "vectors", "is the largest component first"),
        ("path-coordinates", " * np.sqrt(values[::-1][:q])", "", "each column has length 1"),
        ("path-coordinates", "np.sqrt(values[::-1][:q])", "values[::-1][:q]", "λ in place of √λ"),
        (
            "total-gradient-norm",
            "torch.cat([gradient.flatten() for gradient in gradients]).norm()",
            "sum(gradient.norm() for gradient in gradients)",
            "this is the sum of the layers' norms",
        ),
        ("minimal-ratio", "rtol * values.abs().max()", "0", "zeros that rounding made positive"),
        ("normalize-filters", "weight.reshape(units, -1).norm(dim=1)", "1", "Has each unit the length"),
        ("mislabel", "torch.randint(1,", "torch.randint(0,", "Can a new label be the old one"),
        ("mislabel", "labels.clone()", "labels", "changes its argument labels"),
        ("mislabel", " % classes", "", "wrap around"),
        ("mislabel", "torch.randint(1, classes,", "torch.randint(1, 2,", "about equally likely"),
        ("example-mean", "examples - (len(batch_losses) - 1) * batch_size", "batch_size", "expected"),
        ("mix-networks", "(1 - alpha) * parameter + alpha * b", "alpha * parameter + (1 - alpha) * b", "exchanged"),
        ("mix-networks", "copy.deepcopy(model_a)", "model_a", "changes its argument model_a"),
        ("input-sensitivity", '"sum"', '"mean"', "the loss is averaged, not summed"),
        ("input-sensitivity", "norm(dim=1).mean()", "norm(dim=1).sum()", "a sum, not a mean"),
        ("one-step-sharpness", "(loss(twin) - value)", "loss(twin)", "the loss after the step, not its rise"),
        ("one-step-sharpness", "theta.abs() * gradient", "gradient", r"Is \|θ\| in the slope"),
        ("one-step-sharpness", ", copy.deepcopy(network)", ", network", "changes its argument network"),
        ("two-groups", '"lr": readout', '"lr": rest', "Does its layer have the rate"),
        ("centered-alignment", "features - features.mean(0), ", "features, ", "expected"),
        ("centered-alignment", " ** 2 / norms", " / norms", "expected"),
        ("pearson-interval", "0.975", "0.95", "the quantile is one-sided"),
        ("linear-cka", "x - x.mean(0), y - y.mean(0)", "x, y", "Likely cause: not centered"),
        ("linear-cka", "norms = ", "norms = 2 * ", "2 times too small"),
        ("keep-outputs", "output.clone()", "output", "Did the ReLU overwrite what you kept"),
        ("keep-outputs", "stack.callback(handle.remove)", "pass", "a hook is left"),
    ],
)
def test_a_typical_mistake_is_named(key: str, old: str, new: str, words: str, desks: Callable[[str], Desk]) -> None:
    source = desks(key).solution.source
    assert old in source
    with pytest.raises(AssertionError, match=words):
        desks(key).check_text(source.replace(old, new))


def test_every_exercise_is_tried() -> None:
    assert {name for name, _, _ in EXERCISES.values()} == set(NOTEBOOKS)
    assert all(checks for _, _, checks in EXERCISES.values())
    assert len(ANSWERED) > 10


def test_the_cells_that_make_the_cases_are_locked() -> None:
    """So that grading uses the originals."""
    for name, notebook in NOTEBOOKS.items():
        for cell in exercise_cells(notebook):
            if cell.id.startswith("exercise"):
                assert nbgrader_of(cell), f"{name}, {cell.id}: neither the student's nor locked"
                assert nbgrader_of(cell)["locked"] != nbgrader_of(cell)["solution"]


def test_the_search_for_the_cells_that_exercises_need() -> None:
    cells = [
        new_code_cell("import math\nn = 3  # used below\nm = 4"),
        new_code_cell("n = 30  # later, so this one counts"),
        new_code_cell("results = [x for x in range(m)]"),
        new_code_cell("def case(k):\n    return k + n"),
        new_code_cell("def f(results):\n    return math.pi + case(results)"),
    ]
    cells[-1].metadata["nbgrader"] = {"solution": True}
    notebook = new_notebook(cells=[new_markdown_cell("text"), *cells])
    assert [cell.source for cell in exercise_cells(notebook)] == [cells[at].source for at in (0, 1, 3, 4)]


# --- The helpers --------------------------------------------------------------------------------------------------


def says(got: Any, expected: Any, **options: Any) -> str:
    """What compare says."""
    with pytest.raises(Mistake) as error:
        compare(got, expected, "it", **options)
    return str(error.value)


A = np.array([[1.0, -2.0, 3.5], [4.0, 5.0, -6.25]])
Q = np.array([[1.0, 2.0], [3.0, 4.5]])


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (3.0, 2.5, "it: 3, expected 2.5."),
        (
            np.array([1.0, 2.0]),
            np.array([1.0, 3.0]),
            "it: first wrong entry [1]: 2, expected 3 (1 of 2 entries is wrong).",
        ),
        (-A, A, "Likely cause: the sign."),
        (-2.0, 2.0, "Likely cause: the sign."),
        (2 * A, A, "Likely cause: a factor: all 2 times too large."),
        (A / 12, A, "Likely cause: a factor: all 12 times too small."),
        (-3 * A, A, "Likely cause: a factor: all 3 times too large and of the other sign."),
        (1.375 * A, A, "Likely cause: a factor: all 1.375 times too large."),
        (6.0, 0.5, "Likely cause: a factor: 12 times too large."),
        (A + 0.5, A, "Likely cause: a constant: all off by +0.5."),
        (3.5, 2.5, "Likely cause: a constant: off by +1."),
        (Q.T, Q, "Likely cause: transposed."),
        (Q[::-1], Q, "Likely cause: the order is reversed."),
        (A[:, ::-1], A, "Likely cause: the columns are in reversed order."),
        (A.ravel()[[3, 1, 2, 0, 5, 4]], A.ravel(), "Likely cause: the right numbers in another order."),
        (np.zeros(3), np.arange(3.0), "Likely cause: the result is never filled in, all is 0."),
        (0.25, 0.5, "Likely cause: squared once too often."),
        (0.5, 0.25, "Likely cause: a root too many, or a square is missing."),
        (np.trunc(A), A, "Likely cause: cut to whole numbers."),
        (np.round(A + 0.01), A + 0.01, "Likely cause: rounded to whole numbers."),
        (np.array([1.0, math.nan, 2.0]), np.ones(3), "it: first wrong entry [1]: nan, expected 1 (2 of 3"),
        (math.inf, 1.0, "Likely cause: a division by 0, the logarithm or root of a number below 0, or an overflow."),
        (A.T, A, "it: shape (3, 2), expected (2, 3): transposed?"),
        (math.nan, 1.0, "it: nan, expected 1. Likely cause: a division by 0"),
        ([1.0, math.nan], [1.0, 2.0], "it[1]: nan, expected 2. Likely cause: a division by 0"),
        (torch.tensor([math.nan], dtype=torch.bfloat16), [1.0], "it is a Tensor, expected a list of 1 entries."),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.0, "it: 1.5, expected 1."),
        ([np.ones(2), np.ones((2, 1))], [np.ones(2)] * 2, "it[1]: shape (2, 1), expected (2,): an axis of length 1"),
        (np.ones(5), 1.0, "it: shape (5,), expected (), a single number: is a sum, mean or norm missing?"),
        (np.ones(1), 1.0, "it: shape (1,), expected (): take its only entry."),
        (1.0, np.ones(5), "it: shape (), expected (5,): is it reduced to one number too early?"),
        (np.ones((5, 1)), np.ones(5), "it: shape (5, 1), expected (5,): an axis of length 1 is too many or missing."),
        (np.ones(6), A, "it: shape (6,), expected (2, 3): the same number of entries"),
        (np.ones(4), np.ones(5), "it: shape (4,), expected (5,)."),
        (torch.ones(2), torch.ones(2, dtype=torch.int64), "it: numbers of type float32, expected whole ones (int64)."),
        (np.ones(2, complex), np.ones(2), "it: complex numbers, expected real ones."),
        (None, 1.0, "it is None (is a `return` missing?), expected numbers."),
        (len, 1.0, "it is the function len (are its parentheses missing?), expected numbers."),
        ("3", 1.0, "it is a str, expected numbers."),
        ([[1.0], [1.0, 2.0]], A, "it is a list that does not make an array"),
        ((torch.ones(2), torch.ones(3)), A, "an array: a tuple of [Tensor (2,) float32, Tensor (3,) float32]; return"),
        (torch.ones(2), {"a": 1.0}, "it is a Tensor, expected a dict with the keys ['a']."),
        ({"b": 1.0}, {"a": 1.0}, "it lacks the keys ['a']; it has ['b']."),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0}, "it has keys that do not belong there: ['b']."),
        ({"a": 2.5}, {"a": 1.0}, "it['a']: 2.5, expected 1."),
        (1.0, (1.0, 2.0), "it is a float, expected a tuple of 2 entries."),
        ([1.0], [1.0, 2.0], "it has 1 entries, expected 2."),
        ([1.0, 7.3], [1.0, 2.0], "it[1]: 7.3, expected 2."),
    ],
)
def test_compare_says_what_differs(got: Any, expected: Any, words: str) -> None:
    assert words in says(got, expected)


def test_compare_accepts_what_is_right() -> None:
    compare(torch.tensor(0.5, requires_grad=True), 0.5)
    compare([1, 2], np.array([1.0, 2.0]))
    compare(torch.ones(3), np.ones(3))
    compare(3, 3.0)
    compare((1.0, torch.ones(2)), [1.0, np.ones(2)])
    compare([1.0, torch.ones(2)], (1.0, np.ones(2)))
    compare(torch.ones(2, dtype=torch.bfloat16), np.ones(2))
    compare([torch.tensor(1.0, requires_grad=True), torch.tensor(2.0)], np.array([1.0, 2.0]))
    compare([-math.inf, math.inf], np.array([-math.inf, math.inf]))
    compare({"b": 1.0, "a": 2.0}, {"a": 2.0, "b": 1.0})
    compare(1.001, 1.0, rtol=1e-2)
    compare(1e-5, 0.0, atol=1e-4)


@pytest.mark.parametrize("expected", [math.nan, [1.0, math.nan], {"a": np.array([math.nan])}])
def test_nothing_equals_nan(expected: Any) -> None:
    with pytest.raises(ValueError, match="NaN in what is expected"):
        compare(expected, expected)


def test_a_message_ends_with_one_mark() -> None:
    for got, expected in ((A.T, A), (np.ones(5), 1.0), (1.0, np.ones(5)), (np.ones(4), np.ones(5)), (np.ones(6), A)):
        assert re.search(r"[^.?][.?]$", says(got, expected))


def test_causes_are_tried_before_common_ones_and_the_hint_comes_last() -> None:
    assert "Likely cause: mine." in says(-A, A, causes={"other": 3 * A, "mine": -A})
    assert says(7.3, 2.5, causes={"mine": 4.0}, hint="Look twice.") == "it: 7.3, expected 2.5. Look twice."
    assert "Look twice" not in says(-A, A, hint="Look twice.")
    assert "mine" not in says(2.50001, 2.5, rtol=1e-7, causes={"mine": 2.5000001}), "a cause that changes nothing"
    assert says(1.0000001, 1.0, rtol=1e-9) == "it: 1.0000001, expected 1. Likely cause: too few digits, as of float32."
    assert "float32" in says(np.float64(np.float32(0.1)) * np.ones(3), 0.1 * np.ones(3), rtol=1e-12, atol=0)


@settings(max_examples=40)
@given(arrays(np.float64, (2, 3), elements=st.floats(-1e3, 1e3)), st.integers(0, 5), st.floats(0.01, 1e3))
def test_compare_finds_any_single_wrong_entry(right: np.ndarray, at: int, off: float) -> None:
    wrong = right.copy()
    wrong.flat[at] += off * (1 + abs(wrong.flat[at]))
    compare(right.copy(), right)
    assert f"first wrong entry [{at // 3}, {at % 3}]" in says(wrong, right)


def test_same_form_leaves_the_numbers_free() -> None:
    same_form(torch.tensor([5, 6]), np.array([1, 2]))
    same_form(np.array([True, False]), np.array([1, 2]))
    same_form([0.5], [1.0])
    with pytest.raises(Mistake, match="shape"):
        same_form(torch.zeros(2, 1), torch.zeros(2))


def test_attempt_passes_arguments_results_and_names_on() -> None:
    def f(x: int, *, y: int = 2) -> int:
        """Words."""
        return x + y

    assert attempt(f)(1, y=5) == 6
    assert (attempt(f).__name__, attempt(f).__doc__) == ("f", "Words.")
    with pytest.raises(TypeError, match="attempt takes a function, not 3"):
        attempt(3)  # type: ignore[arg-type]
    with pytest.raises(Mistake, match="f does not take the arguments of the exercise: "):
        attempt(f)(1, 2, 3)


def test_an_exception_in_the_function_gets_a_note_with_its_arguments() -> None:
    def f(x: torch.Tensor, n: int, model: nn.Module, text: str, W: list) -> None:
        raise NotImplementedError("torch says this, too")

    with pytest.raises(NotImplementedError) as error:
        attempt(f)(torch.ones(2, 3), 5, nn.Linear(1, 1), "x" * 100, [torch.ones(1, 2).bfloat16(), np.ones(3)] * 3)
    [note] = error.value.__notes__
    assert note == (
        "f was called with x = Tensor (2, 3) float32, n = 5, model = a network (Linear), text = a str, W = a list of"
        " [Tensor (1, 2) bfloat16, ndarray (3,) float64, Tensor (1, 2) bfloat16, ndarray (3,) float64] and 2 more"
    )


@pytest.mark.parametrize(
    ("value", "spoil"),
    [
        (torch.ones(2), lambda value: value.add_(1)),
        (torch.ones(2), lambda value: value.resize_(1)),
        (torch.tensor([math.nan, 1.0]), lambda value: value[:1].fill_(0)),
        (torch.tensor([0.0, 1.0], dtype=torch.bfloat16), lambda value: value[:1].fill_(math.nan)),
        (torch.tensor([math.inf]), lambda value: value.fill_(torch.finfo().max)),
        (np.ones(2), lambda value: value.fill(3)),
        (np.array([math.nan, 1.0]), lambda value: value[:1].fill(0)),
        ([torch.ones(2), torch.ones(2)], lambda value: value[1].mul_(2)),
        ([1, torch.ones(2)], lambda value: value.pop()),
        ({"W": torch.ones(2)}, lambda value: value["W"].zero_()),
        (nn.Linear(2, 2), lambda value: value.weight.data.zero_()),
        (nn.BatchNorm1d(2), lambda value: value.running_mean.fill_(math.nan)),
    ],
)
def test_changed_arguments_are_named(value: Any, spoil: Callable[[Any], Any]) -> None:
    def f(first: int, given: Any) -> int:
        spoil(given)
        return first

    simple = isinstance(value, torch.Tensor | np.ndarray)
    how = r"x = x - 1 makes one, x -= 1 does not" if simple else r"copy.deepcopy\(given\) makes one"
    with pytest.raises(Mistake, match=rf"f changes its argument given: work on a copy \({how}\)"):
        attempt(f)(1, value)


def test_unchanged_arguments_are_left_alone() -> None:
    given_ones = [
        torch.tensor([math.nan]),
        torch.tensor([math.nan, -math.inf], dtype=torch.bfloat16),
        torch.tensor([complex(math.nan, 1)]),
        np.array([math.nan]),
        {"nan": [torch.tensor(math.nan), torch.tensor(True)]},
        np.array(["a"]),
        nn.BatchNorm1d(3),
        [1, "two", None],
        5,
    ]
    given_ones.append(torch.ones(2, requires_grad=True) * 2)  # no leaf: deepcopy would refuse it
    for value in given_ones:
        assert attempt(lambda x: 1)(value) == 1


def test_without_refuses_a_function_by_every_way_to_it() -> None:
    a, b = torch.eye(9)[:, :3], torch.eye(9)[:, 2:6]
    before = similarity.cka(a, b)
    imported = similarity.cka
    with without("similarity.cka", "similarity._cka", "backprop.backpropagate", "models.count_parameters"):
        for call in (
            lambda: imported(a, b),
            lambda: similarity.cka(x=a, y=b),
            lambda: similarity.similarity_matrix({"a": a}, {"b": b}),  # through a table of functions
            lambda: backprop.backpropagate(nn.Sequential(), a, b),  # through a decorator
            lambda: models.count_parameters(nn.Linear(2, 2)),
        ):
            with pytest.raises(AnswerUsedError, match=r"asks you to write what [\w. ]+ does"):
                call()
        assert similarity.svcca(a, a) == pytest.approx(1)
    assert similarity.cka(a, b) == before
    assert models.count_parameters(nn.Linear(2, 2)) == 6


def test_without_refuses_classes_and_lets_them_go() -> None:
    parameters = [nn.Parameter(torch.ones(1))]
    for name in (
        "optim.SGD",
        "torch.optim.SGD",
        "similarity.MinibatchCKA",
        "similarity.LayerMatching",
    ):
        kind = exercise._find(name)
        before = vars(kind).get("__init__")
        with without(name), pytest.raises(AnswerUsedError, match=re.escape(name)):
            kind(parameters)
        assert vars(kind).get("__init__") is before
    assert torch.optim.SGD(parameters, lr=1.0)


def test_without_ends_after_an_error_and_within_another() -> None:
    with pytest.raises(ZeroDivisionError), without("models.count_parameters"):
        1 / 0  # noqa: B018
    with without("models.count_parameters"):
        with without("models.count_parameters"):
            pass
        with pytest.raises(AnswerUsedError):
            models.count_parameters(nn.Linear(2, 2))
    assert models.count_parameters(nn.Linear(2, 2)) == 6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("similarity.nothing", "there is no similarity.nothing, neither in labutils nor elsewhere"),
        ("no such module", "there is no no such module"),
        ("math.sqrt", "cannot refuse math.sqrt"),
    ],
)
def test_without_refuses_unknown_names(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words), without("models.count_parameters", name):
        pass
    assert models.count_parameters(nn.Linear(2, 2)) == 6, "what was refused already is free again"
