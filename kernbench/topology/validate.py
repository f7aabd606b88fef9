"""From a description to a checked :class:`SystemSpec`, with every error of the description reported at once."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from kernbench.topology import document
from kernbench.topology.problem import Key, Problem, any_of, did_you_mean, dotted, listed, near
from kernbench.topology.schema import SystemSpec

_STRUCTURE = ("sips", "rows", "cols", "kind")
"""Keys that say which nodes and links exist."""


def validate(tree: document.Branch) -> tuple[SystemSpec | None, list[Problem]]:
    """The spec and what is wrong with the description.

    Where something is wrong, the spec has stand-ins for it: good enough to see whether the rest fits together, so that
    a link to a cube that does not exist is reported beside a missing unit. It is None where the structure itself is in
    doubt.
    """
    try:
        return SystemSpec.model_validate(document.plain(tree)), []
    except ValidationError as error:
        errors = error.errors()
    problems = [_problem(tree, e) for e in errors]
    if any(p.path.endswith(_STRUCTURE) or f"`{word}`" in p.message for p in problems for word in _STRUCTURE):
        return None, problems
    rest: document.Node = tree
    for e in sorted(errors, key=lambda e: _order(_key(e["loc"])), reverse=True):
        if e["type"] != "missing":
            rest = document.without(rest, _key(e["loc"]))
    rest = document.merge(document.read(document.presets()["tiny"]), rest)
    try:
        return SystemSpec.model_validate(document.plain(rest)), problems
    except ValidationError:
        return None, problems


def _order(key: Key) -> tuple[tuple[int, int, str], ...]:
    """Sorts keys, list positions by number: the last is taken out first."""
    return tuple((0, part, "") if isinstance(part, int) else (1, 0, part) for part in key)


def _key(loc: tuple[int | str, ...]) -> Key:
    return tuple(part for part in loc if part != "[key]")


def _problem(tree: document.Branch, error: Mapping[str, Any]) -> Problem:
    key = _key(error["loc"])
    found = error["input"]
    kind = error["type"]
    place = document.place_of(tree, key)
    if kind == "missing":
        message = f"missing: add {_expectation(key)}"
    elif kind == "extra_forbidden":
        message = f"unknown key `{key[-1]}` ({_near(key)})"
    elif kind == "value_error":
        message = str(error["ctx"]["error"])
    elif kind == "literal_error":
        choices = re.findall("'([^']*)'", error["ctx"]["expected"])
        hint = f": did you mean {any_of(alike)}?" if (alike := near(str(found), choices)) else ""
        message = f"found {_shown(found)}, expected one of {listed(choices)}{hint}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        known = "its numbers" if kind == "dict_type" else listed(_fields(key))
        message = f"found {_shown(found)}, expected a mapping with {known}"
    elif kind in ("tuple_type", "list_type"):
        message = f"found {_shown(found)}, expected a list"
    elif kind == "string_type":
        message = f"found {_shown(found)}, expected text"
    elif kind.startswith("bool"):
        message = f"found {_shown(found)}, expected `true` or `false`"
    else:
        message = f"found {_shown(found)}: {error['msg']}"
    return Problem(message, dotted(key), place)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, (list, tuple)) else f"`{value}`"


def _expectation(key: Key) -> str:
    """What a missing key should be, by its type."""
    annotation = _model(key[:-1]).model_fields
    for name, info in annotation.items():
        if (info.alias or name) != key[-1]:
            continue
        for meta in info.metadata:
            dimension = getattr(getattr(meta, "func", None), "args", (None,))[0]
            if dimension is not None:
                return f"a {dimension.name} such as `{dimension.example}`"
        model = _model_of(info.annotation)
        if model is not None:
            return f"a mapping with {listed(_names(model))}"
        if info.annotation is str:
            return "a text"
    return "a whole number of at least 1"


def _near(key: Key) -> str:
    """A question naming keys like the last of ``key``: in its own mapping, else where that very key is known."""
    word = str(key[-1])
    alike = near(word, _fields(key[:-1]))
    if not alike:
        elsewhere = [path for path in paths(SystemSpec) if path.rpartition(".")[2] == word]
        alike = sorted(elsewhere, key=lambda path: -_shared(path, dotted(key)))[:3]
    return f"did you mean {any_of(alike)}?" if alike else did_you_mean(word, _fields(key[:-1]))


def _shared(a: str, b: str) -> int:
    """How many leading parts two dotted paths have in common."""
    pairs = zip(a.split("."), b.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _names(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _fields(key: Key) -> list[str]:
    """Keys that a description knows in the mapping at ``key``."""
    names = _names(_model(key))
    return names if key else [*names, "extends"]


def paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of everything that a description may say, in the order of the models."""
    for name, info in model.model_fields.items():
        path = f"{prefix}{info.alias or name}"
        yield path
        child = _model_of(info.annotation)
        if child is not None and get_origin(info.annotation) is not tuple:
            yield from paths(child, f"{path}.")


def _model(key: Key) -> type[BaseModel]:
    """The model that describes the mapping at ``key``; the nearest one around it where that is no model."""
    model: type[BaseModel] = SystemSpec
    for part in key:
        for name, info in model.model_fields.items():
            if (info.alias or name) == part:
                model = _model_of(info.annotation) or model
    return model


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation: itself, in an optional, or as a tuple's element."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, Union, types.UnionType):
        for inner in get_args(annotation):
            if (found := _model_of(inner)) is not None:
                return found
    return None
