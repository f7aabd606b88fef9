"""What a kernel's source says of its parameters: which are pointers, which integers, strides, block sizes.

Triton's parameters carry no types. What flows into the address of a load or store is a pointer; what flows into
offsets, masks and loop bounds is an integer; of the rest we take floats.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

_ATOMICS = frozenset(f"atomic_{kind}" for kind in ("add", "max", "min", "and", "or", "xor", "xchg", "cas"))
_MAKERS = frozenset({"make_block_ptr", "make_tensor_descriptor"})
_ACCESSES = frozenset({"load", "store"}) | _ATOMICS | _MAKERS
_OF_DESCRIPTORS = frozenset({"load_tensor_descriptor", "store_tensor_descriptor"})
_MASK_AT = {"load": 1, "atomic_cas": 3}
"""Position of the mask where it is not the third argument."""
_SAME = frozenset({"multiple_of", "max_contiguous", "max_constancy", "cast", "advance"}) | _MAKERS
"""Functions whose result points where their first argument does."""
_METHODS = frozenset({"to", "reshape", "broadcast_to", "expand_dims"})
_OF_INTEGERS = frozenset({"range", "static_range", "cdiv", "arange"}) | {
    f"{name}{suffix}" for name in ("rand", "randn", "randint") for suffix in ("", "4x")
}
_INTEGER_OPERATORS = (ast.Mod, ast.FloorDiv, ast.LShift, ast.RShift, ast.BitXor)
_BLOCKS_OF = frozenset({"arange", "zeros", "full"})


@dataclass
class Roles:
    """Names of a kernel's parameters by what they are. Every one is in exactly one of the first five."""

    pointers: list[str] = field(default_factory=list)
    integers: list[str] = field(default_factory=list)
    floats: list[str] = field(default_factory=list)
    constexprs: list[str] = field(default_factory=list)
    descriptors: list[str] = field(default_factory=list)
    """Host tensor descriptors."""
    indices: set[str] = field(default_factory=set)
    """Pointers to integers: what is loaded from them becomes an offset, a mask or a bound."""
    scattered: set[str] = field(default_factory=set)
    """Pointers to integers that say where something is stored."""
    packed: set[str] = field(default_factory=set)
    """Pointers to integers of which bits are taken."""
    counters: set[str] = field(default_factory=set)
    """Pointers that atomics put whole numbers into: locks and counters."""
    ranges: set[str] = field(default_factory=set)
    """Constexprs that are the length of a block: powers of two."""
    tiled: set[str] = field(default_factory=set)
    """Constexprs that programs or loops step by: several of them make up a size."""
    compared: set[str] = field(default_factory=set)
    """What masks and branches compare with."""
    used: set[str] = field(default_factory=set)
    axes: set[int] = field(default_factory=set)
    """Axes of the grid that a program asks for."""
    persistent: bool = False
    """Programs ask how many of them there are."""


def of(jitted: Any) -> Roles:
    """The roles of a ``@triton.jit`` function's parameters."""
    whole = _Analysis(jitted, {})
    roles = Roles(
        indices=whole.indices & whole.pointers,
        scattered=whole.scattered & whole.pointers,
        packed=whole.packed & whole.pointers,
        counters=whole.counters,
        ranges=whole.ranges & whole.constexprs,
        tiled=whole.tiled & whole.constexprs,
        compared={
            n.id
            for c in ast.walk(whole.f.node)
            if isinstance(c, ast.Compare)
            for n in ast.walk(c)
            if isinstance(n, ast.Name)
        },
        used={n.id for n in ast.walk(whole.f.node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)},
    )
    for analysis in whole.known.values():
        for name, call in analysis.f.calls:
            if name == "program_id":
                axis = _argument(call, 0, "axis")
                roles.axes |= {axis.value} if isinstance(axis, ast.Constant) and isinstance(axis.value, int) else set()
            roles.persistent |= name == "num_programs"
    for param in jitted.params:
        name = param.name
        if name in whole.constexprs:
            roles.constexprs.append(name)
        elif name in whole.pointers:
            roles.pointers.append(name)
        elif name in whole.descriptors:
            roles.descriptors.append(name)
        elif name in whole.integers or is_stride(name) or _sounds_like_an_integer(name):
            roles.integers.append(name)
        else:
            roles.floats.append(name)
    return roles


def is_stride(name: str) -> bool:
    """Whether a parameter's name says that it is a stride."""
    low = name.lower()
    return "stride" in low or low in ("lda", "ldb", "ldc", "ldd", "ldx", "ldy")


def _sounds_like_an_integer(name: str) -> bool:
    low = name.lower()
    return (
        name in ("M", "N", "K", "B", "H", "Z", "T", "S", "D", "L", "C")
        or low in ("n", "m", "k", "seed", "numel")
        or low.startswith(("n_", "num_", "max_"))
        or low.endswith(("_size", "_len", "_cols", "_rows", "_elements", "_dim", "_seed"))
    )


class _Flow:
    """What the names of one function are assigned from."""

    def __init__(self, function: Any) -> None:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        (self.node,) = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
        arguments = self.node.args
        self.params = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        self.nodes = list(ast.walk(self.node))
        self.calls = [(_called(n), n) for n in self.nodes if isinstance(n, ast.Call)]
        self.assigned: dict[str, list[ast.expr]] = {}
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)
            elif isinstance(node, ast.AugAssign | ast.AnnAssign) and node.value is not None:
                self._assign(node.target, node.value)
            elif isinstance(node, ast.For):
                self._assign(node.target, node.iter)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple):
            apart = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            for i, element in enumerate(target.elts):
                self._assign(element, value.elts[i] if apart and isinstance(value, ast.Tuple) else value)
        elif isinstance(target, ast.Name):
            self.assigned.setdefault(target.id, []).append(value)

    def method_of(self, call: ast.Call) -> str:
        """``desc`` of ``desc.load(...)``, where that is a variable; empty for ``tl.load(...)``."""
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        known = isinstance(owner, ast.Name) and (owner.id in self.params or owner.id in self.assigned)
        return owner.id if known and isinstance(owner, ast.Name) else ""

    def bases(self, address: ast.expr) -> list[str]:
        """Parameters that an address may start from, the leftmost first."""
        found: dict[str, None] = {}
        pending, seen = [address], set()
        while pending:
            node = pending.pop(0)
            if isinstance(node, ast.Name) and node.id not in seen:
                seen.add(node.id)
                if node.id in self.params:
                    found.setdefault(node.id)
                pending = [*self.assigned.get(node.id, ()), *pending]
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
                pending = [node.left, node.right, *pending]
            elif isinstance(node, ast.Subscript):
                pending = [node.value, *pending]
            elif isinstance(node, ast.IfExp):
                pending = [node.body, node.orelse, *pending]
            elif isinstance(node, ast.Call):
                name = _called(node)
                if name in _SAME:
                    pending = [*_address(node), *pending]
                elif name == "where":
                    pending = [*node.args[1:3], *pending]
                elif isinstance(node.func, ast.Attribute) and name in _METHODS:
                    pending = [node.func.value, *pending]
        return list(found)


def flow_of(function: Any) -> _Flow:
    """What the names of a Python function are assigned from."""
    return _Flow(function)


def _called(call: ast.Call) -> str:
    """The last name of what is called: ``load`` of ``tl.load``."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _argument(call: ast.Call, at: int, name: str) -> ast.expr | None:
    named = [k.value for k in call.keywords if k.arg == name]
    return named[0] if named else call.args[at] if len(call.args) > at else None


def _address(call: ast.Call) -> list[ast.expr]:
    """The first argument, which may be given by its name."""
    return call.args[:1] or [k.value for k in call.keywords if k.arg in ("pointer", "base", "input", "ptr")]


class _Analysis:
    """One function: the roles of its parameters, and what the functions it calls say of them."""

    def __init__(self, jitted: Any, known: dict[str, _Analysis]) -> None:
        self.jitted, self.known = jitted, known
        known[jitted.fn.__name__] = self
        self.f = _Flow(jitted.fn)
        self.constexprs = {p.name for p in jitted.params if p.is_constexpr}
        self.helpers = [(call, found) for name, call in self.f.calls if (found := self._helper(name)) is not None]
        self.accesses = [
            (name, call)
            for name, call in self.f.calls
            if name in _ACCESSES and _address(call) and not self.f.method_of(call)
        ]
        self.descriptors = {
            owner
            for name, call in self.f.calls
            if name in _ACCESSES and (owner := self.f.method_of(call)) in self.f.params
        }
        self.descriptors |= {
            node.id
            for name, call in self.f.calls
            for node in call.args[:1]
            if name in _OF_DESCRIPTORS and isinstance(node, ast.Name) and node.id in self.f.params
        }
        self.descriptors |= {g.id for h, p, g in self._handed() if p in h.descriptors and isinstance(g, ast.Name)}
        self.descriptors &= {*self.f.params} - self.f.assigned.keys()
        self.pointers = self._pointers()
        self.indices: set[str] = set()
        self.integers = self._integers() - self.pointers
        self.scattered = self._loaded_in(a for name, call in self.accesses if name == "store" for a in _address(call))
        self.packed = self._loaded_in(
            n.left
            for n in self.f.nodes
            if isinstance(n, ast.BinOp)
            and (isinstance(n.op, ast.RShift) or (isinstance(n.op, ast.BitAnd) and isinstance(n.right, ast.Constant)))
        )
        self.counters = {
            base
            for name, call in self.accesses
            if name in _ATOMICS and any(isinstance(v, ast.Constant) and type(v.value) is int for v in call.args[1:2])
            for base in self._bases(_address(call)[0])[:1]
        }
        self.counters |= {b for h, param, g in self._handed() if param in h.counters for b in self._bases(g)[:1]}
        self.tiled, self.ranges = self._tiled(), self._ranges()

    def _helper(self, name: str) -> _Analysis | None:
        """The function of the user's that a call enters."""
        if name in self.known:
            return self.known[name] if self.known[name] is not self and hasattr(self.known[name], "ranges") else None
        found = self.jitted.fn.__globals__.get(name)
        if found is None or not hasattr(found, "params") or found.fn.__module__.startswith("triton."):
            return None
        return _Analysis(found, self.known)

    def _handed(self) -> Iterator[tuple[_Analysis, str, ast.expr]]:
        """(function, its parameter, what is handed to it) of all calls of the user's functions."""
        for call, helper in self.helpers:
            for param, given in zip(helper.f.params, call.args, strict=False):
                yield helper, param, given
            for keyword in call.keywords:
                if keyword.arg:
                    yield helper, keyword.arg, keyword.value

    def _bases(self, address: ast.expr) -> list[str]:
        return [n for n in self.f.bases(address) if n not in self.constexprs]

    def _pointers(self) -> set[str]:
        several = [self._bases(_address(call)[0]) for _, call in self.accesses]
        several += [self._bases(given) for helper, param, given in self._handed() if param in helper.pointers]
        for node in self.f.nodes:  # x_ptr.dtype.element_ty
            if isinstance(node, ast.Attribute) and node.attr == "element_ty" and isinstance(node.value, ast.Attribute):
                several.append(self._bases(node.value.value)[:1])
        numbers = self._numbers()
        found: set[str] = set()
        for names in several:
            likely = [n for n in names if n not in numbers and not is_stride(n)] or names
            found.update(likely if all("ptr" in n.lower() for n in likely) else likely[:1])
        return found

    def _numbers(self) -> set[str]:
        """Names that arithmetic shows to be no pointers."""
        sides: list[ast.expr] = []
        for node in self.f.nodes:
            if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Add | ast.Sub):
                sides += [node.left, node.right]
            elif isinstance(node, ast.Compare):
                sides += [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and _called(node) in _OF_INTEGERS:
                sides += node.args
        return {n.id for n in sides if isinstance(n, ast.Name)}

    def _integers(self) -> set[str]:
        """Parameters that offsets, masks and bounds are made of."""
        pending: list[ast.expr] = []
        for name, call in self.accesses:
            pending += _address(call)
            if name in _MAKERS:
                pending += call.args[1:] + [k.value for k in call.keywords if k.arg not in ("base", "padding_option")]
            else:
                mask = _argument(call, _MASK_AT.get(name, 2), "mask")
                pending += [] if mask is None else [mask]
        for name, call in self.f.calls:
            if name in _OF_INTEGERS:
                pending += call.args
            elif name == "advance":
                pending += call.args[1:]
            elif name in ("load", "store") and self.f.method_of(call):
                pending += call.args[:1]
        pending += [g for h, param, g in self._handed() if param in h.integers | h.pointers]
        for node in self.f.nodes:
            if isinstance(node, ast.BinOp) and isinstance(node.op, _INTEGER_OPERATORS):
                pending += [node.left, node.right]
        names: set[str] = set()
        self._trace(pending, names)
        compared = [(n.left, *n.comparators) for n in self.f.nodes if isinstance(n, ast.Compare)]
        before = -1
        while before != len(names):  # what is compared with an integer is one
            before = len(names)
            for sides in compared:
                if any(isinstance(side, ast.Name) and side.id in names for side in sides):
                    self._trace(sides, names)
        return names & set(self.f.params)

    def _loaded_in(self, expressions: Iterable[ast.expr]) -> set[str]:
        """Pointers to the integers that expressions are computed from."""
        others, self.indices = self.indices, set()
        self._trace(expressions, set())
        found, self.indices = self.indices, others
        return found

    def _trace(self, expressions: Iterable[ast.expr], names: set[str]) -> None:
        """Add all names that expressions are computed from; of what is loaded, note the pointer instead."""
        pending = list(expressions)
        while pending:
            node = pending.pop()
            if isinstance(node, ast.Name):
                if node.id not in names:
                    names.add(node.id)
                    pending += self.f.assigned.get(node.id, ())
            elif isinstance(node, ast.Call):
                name = _called(node)
                helper = next((h for call, h in self.helpers if call is node), None)
                if name in _ACCESSES - _MAKERS and not self.f.method_of(node):
                    self.indices.update(base for a in _address(node) for base in self._bases(a)[:1])
                    pending += _address(node)
                elif helper is not None:
                    pending += [g for h, param, g in self._handed() if h is helper and param not in helper.pointers]
                else:
                    pending += [*node.args, *(k.value for k in node.keywords)]
                    pending += [node.func.value] if isinstance(node.func, ast.Attribute) else []
            else:
                pending += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)]

    def _tiled(self) -> set[str]:
        steps: list[ast.expr] = []
        for node in self.f.nodes:
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.FloorDiv):
                steps += [node.left, node.right]
            elif isinstance(node, ast.AugAssign):
                steps.append(node.value)
            elif isinstance(node, ast.Call) and _called(node) in ("cdiv", "range"):
                steps += node.args[1:2] if _called(node) == "cdiv" else node.args[2:3]
        steps += [given for helper, param, given in self._handed() if param in helper.tiled]
        return {n.id for n in steps if isinstance(n, ast.Name)}

    def _ranges(self) -> set[str]:
        lengths = [n for name, call in self.f.calls if name in _BLOCKS_OF for a in call.args[:2] for n in ast.walk(a)]
        lengths += [given for helper, param, given in self._handed() if param in helper.ranges]
        return {n.id for n in lengths if isinstance(n, ast.Name)}
