"""What the host code around a kernel says of its arguments, as ``kernel[grid](x, x.stride(0), n, BLOCK=64)`` does.

Nothing of a wrapper is executed. Its expressions are read: a literal is a value, ``x.stride(0)`` a stride, and a size
that was chosen for one parameter is known wherever its expression stands again: ``triton.next_power_of_2(n_cols)``.
"""

from __future__ import annotations

import ast
import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cdiv": lambda a, b: -(-a // b),
    "next_power_of_2": lambda n: 1 << (int(n) - 1).bit_length() if n > 1 else 1,
    "min": min,
    "max": max,
    "int": int,
    "float": float,
    "bool": bool,
    "abs": abs,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "log2": math.log2,
}
_MAKERS = ("empty", "zeros", "ones", "full", "rand", "randn")
_FACTORIES = frozenset(
    (*_MAKERS, *(f"{name}_like" for name in _MAKERS), "new_empty", "new_zeros", "empty_strided", "randint", "arange")
) | {"tensor", "contiguous", "view", "reshape", "clone", "detach", "to", "transpose", "permute"}
"""Functions and methods that give tensors."""
_OF_TENSORS = frozenset({"stride", "shape", "data_ptr", "numel", "is_cuda", "is_contiguous", "dim", "ndim", "device"})
_SIMPLE = (bool, int, float, str, type(None))
_CONSTEXPR = "triton.language.core"
MOST = 8192
"""Programs along an axis that a wrapper's grid may ask for here."""


class Unknown(Exception):
    """The expression needs something that the source does not say."""


@dataclass
class HostCall:
    """A launch of the kernel in a function of the file."""

    exprs: dict[str, ast.expr]
    """By the kernel's parameter."""
    launch_grid: ast.expr
    host: _Host
    known: dict[str, Any] = field(default_factory=dict)
    """Values that were chosen, by the text of their expression."""

    def __post_init__(self) -> None:
        axes: dict[str, set[int]] = {}
        for tensor, axis in filter(None, map(self.stride, self.exprs)):
            axes.setdefault(tensor, set()).add(axis)
        for tensor, found in axes.items():  # all of a tensor's strides tell how many axes it has
            if len(found) > 1 and found == set(range(len(found))):
                self.host.ranks.setdefault(tensor, len(found))

    @classmethod
    def missing(cls) -> HostCall:
        """One that says nothing."""
        nobody = ast.parse("def nobody(): pass").body[0]
        assert isinstance(nobody, ast.FunctionDef)
        return cls({}, ast.Tuple([], ast.Load()), _Host(nobody, {}))

    def text(self, name: str) -> str:
        """What stands for a parameter, in a form that is the same wherever the same is meant; empty for none."""
        return self.host.text(self.exprs[name]) if name in self.exprs else ""

    def choose(self, name: str, value: Any) -> None:
        """Remember what a parameter got, for the other expressions in which it stands."""
        if isinstance(value, _SIMPLE) and name in self.exprs and not isinstance(self.exprs[name], ast.Constant):
            self.known.setdefault(self.text(name), value)

    def is_compound(self, name: str) -> bool:
        """Whether a parameter's value is computed from others."""
        node = self.host.resolved(self.exprs[name]) if name in self.exprs else None
        return isinstance(node, ast.BinOp | ast.IfExp | ast.Compare | ast.BoolOp | ast.UnaryOp) or (
            isinstance(node, ast.Call) and _called(node) in _FUNCTIONS
        )

    def value(self, name: str) -> Any:
        """What is handed to a parameter.

        Raises:
            Unknown: that depends on tensors, or on what a caller gives.
        """
        if name not in self.exprs:
            raise Unknown(name)
        return _Value(self, {}).of(self.exprs[name])

    def evaluated(self, node: ast.expr) -> Any:
        """The value of an expression of the host code.

        Raises:
            Unknown: that depends on tensors, or on what a caller gives.
        """
        return _Value(self, {}).of(node)

    def kind(self, name: str) -> str:
        """``pointer``, ``stride``, ``integer``, ``float`` or, where nothing shows it, empty."""
        if name not in self.exprs:
            return ""
        node = self.host.resolved(self.exprs[name])
        if isinstance(node, ast.Constant):
            return {int: "integer", float: "float"}.get(type(node.value), "")
        if self.stride(name) is not None:
            return "stride"
        if isinstance(node, ast.Name):
            if node.id in self.host.tensors:
                return "pointer"
            return {"int": "integer", "float": "float"}.get(self.host.annotations.get(node.id, ""), "")
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            return "integer"
        if isinstance(node, ast.Call):
            called = _called(node)
            if called in ("numel", "size", "len", "cdiv", "next_power_of_2"):
                return "integer"
            return "pointer" if called in _FACTORIES - {"to"} else ""
        return ""

    def stride(self, name: str) -> tuple[str, int] | None:
        """(tensor, axis) where a parameter is handed that stride."""
        node = self.host.resolved(self.exprs[name]) if name in self.exprs else None
        if isinstance(node, ast.Call) and _called(node) == "stride" and isinstance(node.func, ast.Attribute):
            axis = _integer(node.args[0]) if node.args else None
            return None if axis is None else (ast.unparse(node.func.value), axis)
        return None

    def inside(self, name: str) -> int | None:
        """The stride that a parameter gets of a contiguous tensor; None where its sizes are not known."""
        told = self.stride(name)
        if told is None:
            return None
        tensor, axis = told
        for _ in range(4):  # torch.empty_like(x) is as large as x
            like = next(
                (
                    v
                    for v in self.host.assigned.get(tensor, ())
                    if isinstance(v, ast.Call) and _called(v).endswith("_like")
                ),
                None,
            )
            if like is None or not like.args or not isinstance(like.args[0], ast.Name):
                break
            tensor = like.args[0].id
        sizes = [self.known.get(f"{tensor}.shape[{i}]") for i in range(axis + 1, self.host.ranks.get(tensor, 0))]
        if not (self.host.ranks.get(tensor, 0) > axis >= 0 and all(isinstance(n, int) and n > 0 for n in sizes)):
            return None
        return math.prod(n for n in sizes if isinstance(n, int))

    def dtype(self, name: str) -> str:
        """The element type, as torch calls it, of the tensor that a pointer gets; empty where nothing says it."""
        return self.host.dtype_of(self.exprs[name]) if name in self.exprs else ""

    def grid(self, meta: Mapping[str, Any]) -> list[int | None]:
        """Programs along each axis; None where that depends on something else."""
        node: ast.AST = self.host.resolved(self.launch_grid)
        parameter = ""
        if isinstance(node, ast.Name):
            before = [v for v in self.host.assigned.get(node.id, ()) if v.lineno < self.launch_grid.lineno]
            node = self.host.functions.get(node.id, before[-1] if before else node)
        if isinstance(node, ast.FunctionDef):
            parameter = node.args.args[0].arg if node.args.args else ""
            returned = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value is not None]
            node = returned[0] if len(returned) == 1 else node
        elif isinstance(node, ast.Lambda):
            parameter = node.args.args[0].arg if node.args.args else ""
            node = node.body
        parts = node.elts if isinstance(node, ast.Tuple | ast.List) else [node]
        found: list[int | None] = []
        for part in parts:
            try:
                number = _Value(self, {parameter: meta}).of(part)  # type: ignore[arg-type]
                found.append(int(number) if isinstance(number, int | float) and 1 <= number <= MOST else None)
            except Unknown:
                found.append(None)
        return found


def find(tree: ast.Module, kernel: str, parameters: Sequence[str], names: Mapping[str, Any]) -> HostCall | None:
    """The launch of a kernel in a file's functions that says most; None where there is none.

    Args:
        tree: the file.
        kernel: its name.
        parameters: the kernel's, in order.
        names: what the file defines.
    """
    found: list[HostCall] = []
    for top in _functions(tree):
        host: _Host | None = None
        for node in ast.walk(top):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)):
                continue
            launched = node.func.value
            if kernel not in {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(launched)}:
                continue
            host = host or _Host(top, names)
            found.append(HostCall(_bound(node, parameters), node.func.slice, host))
    return max(found, key=lambda call: len(call.exprs), default=None)


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions and methods, each with those inside it."""
    bodies = [tree.body, *(n.body for n in tree.body if isinstance(n, ast.ClassDef))]
    return [n for body in bodies for n in body if isinstance(n, ast.FunctionDef)]


def _bound(call: ast.Call, parameters: Sequence[str]) -> dict[str, ast.expr]:
    """Parameters to what they get. Of ``*x.stride()`` each is handed as many as are left over."""
    named = {k.arg: k.value for k in call.keywords if k.arg is not None}
    free = [p for p in parameters if p not in named]
    stars = [a for a in call.args if isinstance(a, ast.Starred)]
    spare = len(free) - (len(call.args) - len(stars))
    each = spare // len(stars) if stars and not any(k.arg is None for k in call.keywords) else 0
    flat: list[ast.expr] = []
    for given in call.args:
        if not isinstance(given, ast.Starred):
            flat.append(given)
            continue
        if each * len(stars) != spare:
            break
        inner = given.value
        for axis in range(each):
            number = ast.Constant(axis)
            if isinstance(inner, ast.Call) and _called(inner) == "stride":
                flat.append(ast.Call(inner.func, [number], []))
            else:
                flat.append(ast.Subscript(inner, number, ast.Load()))
    return {p: e for p, e in {**dict(zip(free, flat, strict=False)), **named}.items() if p in parameters}


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _integer(node: ast.expr) -> int | None:
    try:
        number = ast.literal_eval(node)
    except ValueError:
        return None
    return number if isinstance(number, int) else None


class _Host:
    """A function that launches the kernel: what its names stand for."""

    def __init__(self, function: ast.FunctionDef, names: Mapping[str, Any]) -> None:
        self.names = names
        self.assigned: dict[str, list[ast.expr]] = {}
        self.ranks: dict[str, int] = {}
        self.tensors: set[str] = set()
        self.functions = {n.name: n for n in ast.walk(function) if isinstance(n, ast.FunctionDef)}
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        self.annotations = {a.arg: ast.unparse(a.annotation) for a in every if a.annotation is not None}
        self.parameters = {a.arg for a in every}
        positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
        optional = positional[len(positional) - len(arguments.defaults) :]
        self.defaults = dict(zip(optional, arguments.defaults, strict=True))
        self.defaults |= {
            a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None
        }
        self.tensors |= {name for name, text in self.annotations.items() if "Tensor" in text}
        self.checked: dict[str, ast.expr] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._assign(node.target, node.value)
            elif isinstance(node, ast.AugAssign):  # it has several values
                self._assign(node.target, ast.BinOp(node.target, node.op, node.value))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in _OF_TENSORS:
                self.tensors.add(node.value.id)
            elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "dtype":
                self.checked.setdefault(ast.unparse(node.left.value), node.comparators[0])
        for name, values in self.assigned.items():
            if any(isinstance(v, ast.Call) and _called(v) in _FACTORIES for v in values):
                self.tensors.add(name)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.assigned.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple | ast.List):
            several = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
            if any(isinstance(t, ast.Starred) for t in target.elts):
                return
            if isinstance(value, ast.Call) and _called(value) == "size" and not value.args:
                value = ast.Attribute(value.func.value, "shape", ast.Load())  # type: ignore[attr-defined]
            if isinstance(value, ast.Attribute) and value.attr == "shape":
                self.ranks[ast.unparse(value.value)] = len(target.elts)
            for i, one in enumerate(target.elts):
                part = value.elts[i] if several else ast.Subscript(value, ast.Constant(i), ast.Load())  # type: ignore[attr-defined]
                self._assign(one, part)

    def resolved(self, node: ast.expr) -> ast.expr:
        """An expression with the names of numbers replaced by what they were assigned, once."""
        return _Resolve(self).visit(copy.deepcopy(node))

    def text(self, node: ast.expr) -> str:
        return ast.unparse(self.resolved(node))

    def dtype_of(self, node: ast.expr, depth: int = 4) -> str:
        """The name of a tensor's element type."""
        if depth == 0:
            return ""
        if isinstance(node, ast.Call):
            named = next((k.value for k in node.keywords if k.arg == "dtype"), None)
            called = _called(node)
            if called == "to" and node.args and named is None:
                named = node.args[0]
            if named is not None:
                return self._dtype_named(named, depth)
            if called in ("float", "half", "int", "long", "bool", "bfloat16") and isinstance(node.func, ast.Attribute):
                spelt = {"float": "float32", "half": "float16", "int": "int32", "long": "int64"}
                return spelt.get(called, called)
            if called.endswith("_like") and node.args:
                return self.dtype_of(node.args[0], depth - 1)
            if isinstance(node.func, ast.Attribute) and called in _FACTORIES and not _is_torch(node.func.value):
                return self.dtype_of(node.func.value, depth - 1)
            return ""
        if isinstance(node, ast.Name):
            values = [v for v in self.assigned.get(node.id, ()) if node.id not in _names(v)]
            for value in values[:1]:
                return self.dtype_of(value, depth - 1)
        checked = self.checked.get(ast.unparse(node))
        return "" if checked is None else self._dtype_named(checked, depth)

    def _dtype_named(self, node: ast.expr, depth: int) -> str:
        if isinstance(node, ast.List | ast.Tuple | ast.Set) and node.elts:
            node = node.elts[0]
        if isinstance(node, ast.Name) and len(self.assigned.get(node.id, ())) == 1:
            node = self.assigned[node.id][0]
        if isinstance(node, ast.Attribute):
            if node.attr == "dtype":
                return self.dtype_of(node.value, depth - 1)
            return node.attr if _is_torch(node.value) else ""
        return ""


def _is_torch(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "torch"


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


class _Resolve(ast.NodeTransformer):
    def __init__(self, host: _Host) -> None:
        self.host, self.inside = host, set[str]()

    def visit_Name(self, node: ast.Name) -> ast.expr:
        values = self.host.assigned.get(node.id, [])
        if len(values) != 1 or node.id in self.inside or node.id in self.host.parameters or not _is_number(values[0]):
            return node
        self.inside.add(node.id)
        try:
            return self.visit(copy.deepcopy(values[0]))
        finally:
            self.inside.discard(node.id)

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute):
            axis = _integer(node.args[0]) if len(node.args) == 1 else None
            owner = node.func.value
            if node.func.attr == "size" and axis is not None:
                shape = ast.Attribute(owner, "shape", ast.Load())
                return ast.Subscript(shape, ast.Constant(self._axis(owner, axis)), ast.Load())
            if node.func.attr == "stride" and axis is not None:
                return ast.Call(node.func, [ast.Constant(self._axis(owner, axis))], [])
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        axis = _integer(node.slice)
        if axis is not None and isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            return ast.Subscript(node.value, ast.Constant(self._axis(node.value.value, axis)), ast.Load())
        if axis is not None and isinstance(node.value, ast.Call) and _called(node.value) == "stride":
            return ast.Call(node.value.func, [ast.Constant(self._axis(node.value.func.value, axis))], [])  # type: ignore[attr-defined]
        if axis is not None and isinstance(node.value, ast.Tuple | ast.List) and -len(node.value.elts) <= axis:
            return node.value.elts[axis] if axis < len(node.value.elts) else node
        return node

    def _axis(self, owner: ast.expr, axis: int) -> int:
        rank = self.host.ranks.get(ast.unparse(owner), 0)
        return axis + rank if axis < 0 and rank else axis


def _is_number(node: ast.expr) -> bool:
    """Whether an expression is a number, a dtype or a grid, as far as its form shows."""
    if isinstance(node, ast.Call):
        return _called(node) in _FUNCTIONS or _called(node) in ("size", "numel", "stride", "len")
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute | ast.Call) and _is_shape(node.value)
    return isinstance(node, ast.Constant | ast.BinOp | ast.UnaryOp | ast.Lambda | ast.Tuple | ast.Name | ast.Compare)


def _is_shape(node: ast.expr) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == "shape") or (
        isinstance(node, ast.Call) and _called(node) in ("stride", "size")
    )


class _Value:
    """Evaluates an expression of the host code, from what is known."""

    def __init__(self, call: HostCall, metas: Mapping[str, Mapping[str, Any]]) -> None:
        self.call, self.host, self.metas = call, call.host, metas
        self.depth = 0

    def of(self, node: ast.expr) -> Any:
        self.depth += 1
        try:
            if self.depth > 32:
                raise Unknown("a definition that goes round")
            found = self.call.known.get(self.host.text(node), self)
            return self._of(node) if found is self else found
        except (ArithmeticError, TypeError, ValueError, IndexError) as error:
            raise Unknown(str(error)) from error
        finally:
            self.depth -= 1

    def _of(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](self.of(node.left), self.of(node.right))
        if isinstance(node, ast.UnaryOp):
            inner = self.of(node.operand)
            return not inner if isinstance(node.op, ast.Not) else -inner if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._compare(node)
        if isinstance(node, ast.BoolOp):
            values = [self.of(v) for v in node.values]
            return all(values) if isinstance(node.op, ast.And) else any(values)
        if isinstance(node, ast.IfExp):
            try:
                return self.of(node.body if self.of(node.test) else node.orelse)
            except Unknown:
                return self.of(node.body)
        if isinstance(node, ast.Call):
            function = _FUNCTIONS.get(_called(node))
            if function is not None and not node.keywords:
                return function(*(self.of(a) for a in node.args))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in self.metas:
            meta, name = self.metas[node.value.id], self.of(node.slice)
            if name in meta:
                return meta[name]
        if isinstance(node, ast.Attribute):
            owner = self.host.names.get(ast.unparse(node.value))
            if getattr(owner, "__name__", "") in ("triton.language", "math", "triton.language.core"):
                return getattr(owner, node.attr)
        raise Unknown(ast.unparse(node))

    def _name(self, name: str) -> Any:
        for value in self.host.assigned.get(name, ()):
            if name not in _names(value):
                try:
                    return self.of(value)
                except Unknown:
                    continue
        if name in self.host.assigned and name not in self.host.parameters:
            raise Unknown(name)
        if name in self.host.defaults:
            return self.of(self.host.defaults[name])
        if name in self.host.names and name not in self.host.parameters:
            value = self.host.names[name]
            value = value.value if type(value).__module__ == _CONSTEXPR and hasattr(value, "value") else value
            if isinstance(value, _SIMPLE) or type(value).__module__ == _CONSTEXPR:
                return value
        raise Unknown(name)

    def _compare(self, node: ast.Compare) -> bool:
        (op,), (right,) = node.ops, node.comparators
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise Unknown(ast.unparse(node))
            try:
                missing = self.of(node.left) is None
            except Unknown:
                if not (isinstance(node.left, ast.Name) and node.left.id in self.host.tensors):
                    raise
                missing = False
            return missing if isinstance(op, ast.Is) else not missing
        if type(op) not in _OPERATORS:
            raise Unknown(ast.unparse(node))
        return bool(_OPERATORS[type(op)](self.of(node.left), self.of(right)))
