"""What the parameters cell of a notebook declares: plain values, and in parentheses in their comments what is allowed::

    epochs = 10  # passes through the training images (>= 1)
    noise = 0.2  # share of wrong labels (>= 0, <= 1)
    source = "digits"  # the images ("digits" | "mnist")
    extra = [0.5]  # further rates (> 0, may be empty)

Bounds and choices hold for every number and string of a list or dictionary. A list must not be empty, and neither must
a list in it, unless the comment says that they may. A dictionary of dictionaries (experiments by name) must hold
one, each with the keys that all those of the default have. All other words in a comment are for people.
"""

from __future__ import annotations

import ast
import io
import operator
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_BOUND = re.compile(r"(>=|<=|>|<)\s*(-?[\d._]+(?:e-?\d+)?)")
_EMPTY = "may be empty"


@dataclass(frozen=True)
class Parameter:
    """A parameter as its cell declares it.

    Attributes:
        default: Its value there.
        comment: The words behind it.
        bounds: Comparison and number, such as (">=", 1), which every number of a value must satisfy.
        choices: The strings that are allowed; empty where all are.
        may_be_empty: Whether a list may be empty.
    """

    default: Any
    comment: str = ""
    bounds: tuple[tuple[str, float], ...] = ()
    choices: tuple[str, ...] = ()
    may_be_empty: bool = False


def read(source: str) -> dict[str, Parameter]:
    """Read the text of a parameters cell: name to parameter.

    Raises:
        ValueError: It holds something other than plain values, or what a comment allows cannot be read.

    Example:
        >>> read("rates = [0.1, 0.01]  # learning rates (> 0)")["rates"].bounds
        (('>', 0.0),)
    """
    try:
        nodes = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                raise ValueError(ast.unparse(node))
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        comment = " ".join(comments[line] for line in lines if line in comments)
        try:
            found[name] = _parameter(ast.literal_eval(value), comment)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def _parameter(default: Any, comment: str) -> Parameter:
    bounds: list[tuple[str, float]] = []
    choices: list[str] = []
    may_be_empty = False
    for text in re.findall(r"\(([^()]*)\)", comment):
        if re.fullmatch(r'\s*"[^"]*"(\s*\|\s*"[^"]*")+\s*', text):
            choices += re.findall(r'"([^"]*)"', text)
            continue
        clauses = [clause.strip() for clause in text.split(",")]
        matches = [_BOUND.fullmatch(clause) for clause in clauses]
        if not any(matches) and _EMPTY not in clauses:
            continue
        for clause, match in zip(clauses, matches, strict=True):
            if match:
                bounds.append((match[1], float(match[2])))
            elif clause == _EMPTY:
                may_be_empty = True
            else:
                raise ValueError(f"({text}) is neither bounds, such as (>= 0, < 1), nor words")
    return Parameter(default, comment, tuple(bounds), tuple(choices), may_be_empty)


def check(declared: Mapping[str, Parameter], values: Mapping[str, Any], where: str = "") -> None:
    """Compare values, of those that are declared, with what is allowed; a message begins with `where`.

    Raises:
        ValueError: A value is not allowed; the message names it and what is.

    Example:
        >>> check(read("epochs = 10  # passes (>= 1)"), {"epochs": 0})
        Traceback (most recent call last):
        ValueError: epochs = 0 is not allowed: it must be >= 1
    """
    for name, parameter in declared.items():
        if name in values and (needed := _needed(parameter, values[name])):
            raise ValueError(f"{where}{name} = {values[name]!r} is not allowed: it must {needed}")


def check_cells(namespace: Mapping[str, Any]) -> None:
    """Compare the variables of a notebook, its ``globals()``, with what its parameters cell allows.

    IPython keeps the cells that were executed in the variable ``In``. The first that holds plain values with comments
    is the parameters cell, whoever sets other values below it: papermill, or a person.

    Raises:
        ValueError: A value is not allowed.

    Example:
        >>> check_cells({"In": ["", "epochs = 10  # passes (>= 1)"], "epochs": 20})
    """
    for source in namespace.get("In", ()):
        try:
            declared = read(source)
        except ValueError:
            continue
        if declared and all(parameter.comment for parameter in declared.values()):
            check(declared, namespace)
            return


def _needed(parameter: Parameter, value: Any) -> str:
    """What a value lacks, in words; empty if nothing."""
    items = list(_items(value))
    if not parameter.may_be_empty and any(isinstance(item, list | tuple) for item in items):
        return "not be empty" if not value else "not hold an empty list"
    if lacks := _lacks(parameter.default, value):
        return lacks
    numbers = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
    if not all(_COMPARISONS[sign](number, bound) for number in numbers for sign, bound in parameter.bounds):
        return "be " + " and ".join(f"{sign} {bound:g}" for sign, bound in parameter.bounds)
    if parameter.choices and not all(item in parameter.choices for item in items if isinstance(item, str)):
        return "be " + " or ".join(f'"{choice}"' for choice in parameter.choices)
    return ""


def _lacks(default: Any, value: Any) -> str:
    """What a dictionary of dictionaries lacks, in words, compared with its default; empty if nothing."""
    if not (isinstance(default, dict) and default and all(isinstance(one, dict) for one in default.values())):
        return ""
    if not isinstance(value, dict) or not value:
        return "not be empty"
    shared = [key for key in next(iter(default.values())) if all(key in one for one in default.values())]
    for name, one in value.items():
        for key in shared:
            if not isinstance(one, dict) or key not in one:
                return f"have {key!r} in {name!r}"
    return ""


def _items(value: Any) -> Iterator[Any]:
    """The numbers, strings and so on in lists, tuples and dictionaries, however deep; an empty list as itself."""
    if isinstance(value, dict):
        value = list(value.values()) or None
    if isinstance(value, list | tuple) and value:
        for one in value:
            yield from _items(one)
    else:
        yield value


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml's is eight times as fast
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key!r} comes twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])


def read_yaml(text: str) -> Any:
    """Read YAML as runs.yaml and the command line hold it: 1e-3 is a number, None is null, and no key comes twice.

    Raises:
        yaml.YAMLError: the text is no such YAML.

    Example:
        >>> read_yaml("{lr: 1e-3, device: None}")
        {'lr': 0.001, 'device': None}
    """
    return yaml.load(text, Loader=_Loader)
