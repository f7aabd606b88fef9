"""From the words of a command line to a kernel, its inputs and its grid."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import operator
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from kernbench.cli import kernel_model
from kernbench.kernels import bundle
from kernbench.memory import dtype

_ARRAY = re.compile(r"(\w+)\[([\d,\s]*)\](?::([\w.+-]+))?")
MOST_BYTES = 8 << 30
"""Of an array that an argument asks for, while it is made, in 64-bit numbers."""
FILLS = ("normal", "zeros", "ones", "range", "empty")
_FILLS = f"{', '.join(FILLS)}, or a number"


class KernelFileError(ValueError):
    """A kernel file, an argument or a grid that cannot be used; the message says what to write."""


def load(where: str, kernel: str | None = None) -> Any:
    """The kernel that ``FILE.py:name``, ``FILE.py`` (with one kernel in it) or ``FILE.ttir`` names: a ``@triton.jit``
    function, perhaps under ``autotune`` or ``heuristics``, or a stored Kernel. Of a Python file only what it defines is
    executed (see :func:`definitions`)."""
    path, name = split(where)
    name = kernel or name
    if path.suffix != ".py":
        return bundle.read(path)
    return choose(path, definitions(path), name)


def split(where: str) -> tuple[Path, str]:
    """``FILE.py:name`` as the file and the name, empty where there is none."""
    text, _, name = where.rpartition(":") if re.search(r"\.py:\w+$", where) else (where, "", "")
    return Path(text), name


def choose(path: Path, module: ModuleType, name: str = "") -> Any:
    """A kernel of a file: the one named, or the only one that no other kernel calls.

    Raises:
        KernelFileError: there is none, or several.
    """
    found = _jitted(module)
    failed: dict[str, Exception] = getattr(module, "__kernbench_failed__", {})
    if name and name not in found:
        if name in failed:
            raise _undefined(path, name, failed)
        raise KernelFileError(f"{path}: has no kernel '{name}'; it has {', '.join(found) or 'no @triton.jit function'}")
    if name:
        return found[name]
    names = entries(path, module)
    if len(names) == 1:
        return found[names[0]]
    raise KernelFileError(
        f"{path}: has the kernels {', '.join(names)}: say which with --kernel, as in --kernel {names[0]}"
    )


def entries(path: Path, module: ModuleType) -> list[str]:
    """The kernels of a file that no other kernel calls, in their order. What returns a value is no kernel.

    Raises:
        KernelFileError: there is none.
    """
    failed: dict[str, Exception] = getattr(module, "__kernbench_failed__", {})
    found = _jitted(module)
    own = [n for n, v in found.items() if function_of(v).fn.__module__ == module.__name__]
    helpers = {called for n in own for called in function_of(found[n]).fn.__code__.co_names if called in own}
    kernels = [n for n in own if n not in helpers and not _gives_a_value(function_of(found[n]))]
    if not kernels and failed:
        jitted = [d.name for d in parse(path).body if isinstance(d, ast.FunctionDef) and d.decorator_list]
        raise _undefined(path, next((n for n in jitted if n in failed), next(iter(failed))), failed)
    if not kernels and own:
        raise KernelFileError(f"{path}: has only functions that kernels call ({', '.join(own)}), no kernel")
    if not kernels:
        raise KernelFileError(f"{path}: has no @triton.jit function")
    return kernels


def _jitted(module: ModuleType) -> dict[str, Any]:
    """Triton's functions of a file, under any of its decorators."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import KernelInterface

    kinds = (KernelInterface, InterpretedFunction)  # the second is one of the first since Triton 3.6
    return {n: v for n, v in vars(module).items() if isinstance(v, kinds) and hasattr(v, "arg_names")}


def _gives_a_value(function: Any) -> bool:
    return any(isinstance(n, ast.Return) and n.value is not None for n in ast.walk(function.parse()))


def _undefined(path: Path, name: str, failed: Mapping[str, Exception]) -> KernelFileError:
    """Why a name could not be defined, down to the statement that failed first."""
    error, why, seen = failed[name], "", {name}
    while isinstance(error, NameError) and (missing := error.name or "") in failed and missing not in seen:
        seen.add(missing)
        why += f" needs '{missing}', which"
        error = failed[missing]
    text = f"{path}: '{name}'{why} cannot be defined: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        here = sys.modules.get(top)
        if here is None:
            text += f". Install what provides {top}, or set PYTHONPATH to the folder that it lies in"
        else:
            text += f": the {top} that is installed ({getattr(here, '__version__', 'of some version')}) has none"
    made = KernelFileError(text)
    made.__cause__ = error
    return made


def definitions(path: Path) -> ModuleType:
    """What a Python file defines: its imports, functions, classes and constants, without what it does besides.

    Statements that launch kernels, and everything under ``if __name__ == "__main__"``, are left out, so that a file
    with examples or benchmarks in it can be taken for its kernels. A definition that raises is remembered under
    ``__kernbench_failed__`` and left out.

    Raises:
        KernelFileError: there is no such file, it is no Python, or Triton is missing.
    """
    tree = parse(path)
    name = f"kernbench_kernel_{path.stem}"
    module = ModuleType(name)
    module.__package__ = _package(path, tree)
    module.__file__ = str(path)
    failed: dict[str, Exception] = {}
    vars(module)["__kernbench_failed__"] = failed
    sys.modules[name] = module
    folder = path.parent.resolve()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    if str(folder) not in sys.path:  # a package that names itself
        sys.path.append(str(folder))
    launching = _launching(tree)
    for statement in tree.body:
        if _acts(statement, launching):
            continue
        code = compile(ast.Module([statement], []), str(path), "exec", dont_inherit=True)
        try:
            exec(code, vars(module))
        except Exception as error:
            for defined in _defined(statement):
                failed[defined] = error
    return module


def _package(path: Path, tree: ast.Module) -> str:
    """The package that a file with relative imports lies in, imported; without its own code where that fails."""
    if not any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(tree)):
        return ""
    folders = [path.resolve().parent]
    most = max(n.level for n in ast.walk(tree) if isinstance(n, ast.ImportFrom))
    while (folders[-1] / "__init__.py").is_file() or len(folders) < most:
        folders.append(folders[-1].parent)
    if (folders[0] / "__init__.py").is_file() and len(folders) > most:
        folders.pop()  # the last one is where the package lies
    folders.reverse()
    root = str(folders[0].parent)
    if root not in sys.path:
        sys.path.append(root)
    name = ".".join(folder.name for folder in folders)
    try:
        importlib.import_module(name)
    except Exception:
        for i, folder in enumerate(folders):
            part = ".".join(f.name for f in folders[: i + 1])
            if part not in sys.modules:
                bare = sys.modules[part] = ModuleType(part)
                bare.__path__ = [str(folder)]
    return name


def launches_itself(path: Path) -> bool:
    """Whether running a file launches kernels: at its top level, under ``if __name__ == "__main__"``, or in a model
    that the file tells how to call."""
    tree = parse(path)
    if kernel_model.is_one(tree):
        return True
    launching = _launching(tree)
    return any(_is_main(s) or (not isinstance(s, _DEFINITIONS) and _launches(s, launching)) for s in tree.body)


_DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Import, ast.ImportFrom)


def parse(path: Path) -> ast.Module:
    """A file's syntax tree, of a file that can be looked at.

    Raises:
        KernelFileError: there is no such file, it is no Python, or Triton is missing.
    """
    if not path.is_file():
        raise KernelFileError(f"{path}: no such file")
    if importlib.util.find_spec("triton") is None or sys.modules.get("triton", sys) is None:
        raise KernelFileError(
            f"{path}: Python kernels need Triton (pip install 'kernbench[triton]', Linux only); stored ones (.ttir, "
            "made by `kernbench kernel export` where Triton is) need nothing"
        )
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise KernelFileError(f"{path}: is no Python: {error}") from None


def _is_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) and "__main__" in ast.unparse(node.test)


def _acts(node: ast.stmt, launching: set[str]) -> bool:
    """Whether a statement does something instead of defining something."""
    if isinstance(node, _DEFINITIONS):
        return False
    if _is_main(node) or isinstance(node, ast.Expr | ast.For | ast.While | ast.With | ast.Assert | ast.Delete):
        return True
    return _launches(node, launching)


def _launching(tree: ast.Module) -> set[str]:
    """Functions that launch a kernel, by themselves or through others."""
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    found: set[str] = set()
    while True:
        more = {n for n, f in functions.items() if n not in found and _launches(f, found)}
        if not more:
            return found
        found |= more


def _launches(node: ast.AST, launching: set[str]) -> bool:
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            if isinstance(call.func, ast.Subscript):
                return True
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in launching or name in ("do_bench", "do_bench_cudagraph"):
                return True
    return False


def _defined(node: ast.stmt) -> list[str]:
    """Names that a statement would have defined."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [a.asname or a.name for a in node.names]
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


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

    Arrays are normally distributed floats, or integers from 0 to 9, where nothing else is said. ``empty`` ones hold
    zeros; reading one before it is written counts as a fault.
    """
    found = _ARRAY.fullmatch(text)
    if found is None:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise KernelFileError(
                f"argument '{text}': expected a number, a text in quotes, or an array such as f32[1024] or "
                f"bf16[64,128]:zeros ({_FILLS})"
            ) from None
    kind = dtype(found[1])
    shape = tuple(int(n) for n in found[2].split(",") if n.strip())
    if math.prod(shape) * 8 > MOST_BYTES:
        raise KernelFileError(
            f"argument '{text}': would take {math.prod(shape) * 8 / 2**30:,.1f} GiB to fill; at most "
            f"{MOST_BYTES >> 30} GiB are taken"
        )
    fill = found[3] or "normal"
    if fill == "normal":
        made: np.ndarray = rng.standard_normal(shape) if kind.is_floating_point else rng.integers(0, 10, shape)
        return (made > 0 if kind.name == "i1" else made).astype(kind.storage)
    if fill in ("zeros", "ones", "empty"):
        return np.full(shape, float(fill == "ones")).astype(kind.storage)
    if fill == "range":
        return np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape).astype(kind.storage)
    try:
        return np.full(shape, ast.literal_eval(fill)).astype(kind.storage)
    except (ValueError, SyntaxError):
        raise KernelFileError(f"argument '{text}': unknown filling '{fill}'; expected {_FILLS}") from None


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
