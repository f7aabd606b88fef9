"""From the words of a command line to a kernel, its inputs and its grid."""

from __future__ import annotations

import ast
import importlib.util
import operator
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kernbench.kernels import bundle
from kernbench.memory import dtype

_ARRAY = re.compile(r"(\w+)\[([\d,\s]*)\](?::([\w.+-]+))?")
FILLS = "normal, zeros, ones, range, or a number"


class KernelFileError(ValueError):
    """A kernel file, an argument or a grid that cannot be used; the message says what to write."""


def load(where: str) -> Any:
    """The kernel that ``FILE.py:name``, ``FILE.py`` (with one kernel in it) or ``FILE.ttir`` names: a ``@triton.jit``
    function, perhaps under ``autotune`` or ``heuristics``, or a stored Kernel."""
    text, _, name = where.rpartition(":") if re.search(r"\.py:\w+$", where) else (where, "", "")
    path = Path(text)
    if path.suffix != ".py":
        return bundle.read(path)
    if not path.is_file():
        raise KernelFileError(f"{path}: no such file")
    try:
        from triton.runtime.jit import KernelInterface
    except ImportError:
        raise KernelFileError(
            f"{path}: Python kernels need Triton (pip install 'kernbench[triton]', Linux only); stored ones (.ttir, "
            "made by `kernbench kernel export` where Triton is) need nothing"
        ) from None
    spec = importlib.util.spec_from_file_location(f"kernbench_kernel_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    found = {n: v for n, v in vars(module).items() if isinstance(v, KernelInterface) and hasattr(v, "arg_names")}
    if name and name not in found:
        raise KernelFileError(f"{path}: has no kernel '{name}'; it has {', '.join(found) or 'no @triton.jit function'}")
    own = [name] if name else [n for n, v in found.items() if function_of(v).fn.__module__ == spec.name]
    if len(own) != 1:
        choice = f"{', '.join(own)}: say which, as {path}:{own[0]}" if own else "no @triton.jit function"
        raise KernelFileError(f"{path}: has {choice}")
    return found[own[0]]


def function_of(kernel: Any) -> Any:
    """The ``@triton.jit`` function under its decorators."""
    while hasattr(kernel.fn, "arg_names"):
        kernel = kernel.fn
    return kernel


def pairs(words: list[str], option: str) -> dict[str, str]:
    """``NAME=TEXT`` words as a dict."""
    made = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.strip():
            raise KernelFileError(f"{option} {word}: expected NAME=VALUE")
        made[name.strip()] = text.strip()
    return made


def value(text: str, rng: np.random.Generator) -> Any:
    """What an argument's text says: ``f32[1024,64]``, ``i32[64]:range`` or a Python literal.

    Arrays are normally distributed floats, or integers from 0 to 9, where nothing else is said.
    """
    found = _ARRAY.fullmatch(text)
    if found is None:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise KernelFileError(
                f"argument '{text}': expected a number, or an array such as f32[1024] or bf16[64,128]:zeros ({FILLS})"
            ) from None
    kind = dtype(found[1])
    shape = tuple(int(n) for n in found[2].split(",") if n.strip())
    fill = found[3] or "normal"
    if fill == "normal":
        made: np.ndarray = rng.standard_normal(shape) if kind.is_floating_point else rng.integers(0, 10, shape)
        return (made > 0 if kind.name == "i1" else made).astype(kind.storage)
    if fill in ("zeros", "ones"):
        return np.full(shape, float(fill == "ones")).astype(kind.storage)
    if fill == "range":
        return np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape).astype(kind.storage)
    try:
        return np.full(shape, ast.literal_eval(fill)).astype(kind.storage)
    except (ValueError, SyntaxError):
        raise KernelFileError(f"argument '{text}': unknown filling '{fill}'; expected {FILLS}") from None


_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"cdiv": lambda a, b: -(-a // b), "min": min, "max": max}


def grid(text: str, names: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes from text: ``64``, ``8,4`` or ``cdiv(n, BLOCK), heads`` with the arguments' names."""
    known = {n: v for n, v in names.items() if isinstance(v, int)}
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return tuple(_number(part, known) for part in (tree.elts if isinstance(tree, ast.Tuple) else [tree]))
    except (SyntaxError, TypeError, ValueError, ZeroDivisionError) as error:
        raise KernelFileError(
            f"--grid {text}: {error}; expected sizes such as 64, or cdiv(n, BLOCK), 4 with + - * // %, cdiv, min, max "
            f"and the integer arguments ({', '.join(known) or 'none'})"
        ) from None


def _number(node: ast.expr, known: Mapping[str, int]) -> int:
    """What a piece of arithmetic gives. Only these forms exist, so a text can do nothing else."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number(node.left, known), _number(node.right, known))
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
        and not node.keywords
    ):
        return _FUNCTIONS[node.func.id](*(_number(arg, known) for arg in node.args))
    raise ValueError(f"found `{ast.unparse(node)}`")
