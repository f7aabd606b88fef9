"""Host tensor descriptors for a kernel: element type, blocks, and what Triton is handed for one.

A descriptor says which block its loads and stores move. That is read from where the host code makes it, or left to an
autotuner's ``pre_hook`` that sets it, or follows from the offsets that the kernel loads at: ``[pid_m * BLOCK_M, k]``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from kernbench.cli.kernel_calls import HostCall, Unknown
from kernbench.cli.kernel_roles import Roles, flow_of
from kernbench.memory import DType

MADE_BY = ("TensorDescriptor", "from_tensor")
_BY_NAME = ("load_tensor_descriptor", "store_tensor_descriptor")
WHOLE = 1 << 30
"""Elements along an axis while its length is not known."""
ALIGNED = 16
"""Bytes that rows of a descriptor's tensor are a multiple of."""


def strides_of(name: str, rank: int) -> list[str]:
    """What the strides behind a descriptor parameter are called in a lowered kernel."""
    return [f"{name}.stride.{axis}" for axis in range(rank)]


def shape_of(name: str, rank: int) -> list[str]:
    """What the shape behind a descriptor parameter is called in a lowered kernel."""
    return [f"{name}.shape.{axis}" for axis in range(rank)]


@dataclass
class Described:
    """The tensor behind a descriptor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements; rows start at multiples of 16 bytes."""
    block: tuple[int, ...]

    @classmethod
    def of(cls, extents: list[int], kind: DType, block: tuple[int, ...]) -> Described:
        """A row-major one of these lengths."""
        whole = [*extents[:-1], -(-extents[-1] * kind.itemsize // ALIGNED) * ALIGNED // kind.itemsize]
        return cls(tuple(extents), tuple(int(np.prod(whole[i + 1 :])) for i in range(len(whole))), block)

    @classmethod
    def given(cls, made: Any) -> Described:
        """That of a ``TensorDescriptor``."""
        return cls(tuple(made.shape), tuple(made.strides), tuple(made.block_shape))

    @property
    def allocated(self) -> tuple[int, ...]:
        """The array that holds it."""
        return (*self.shape[:-1], self.strides[-2] if len(self.shape) > 1 else self.shape[-1])

    def around(self, base: Any) -> Any:
        """Triton's ``TensorDescriptor`` of an array or a tensor."""
        from triton.tools.tensor_descriptor import TensorDescriptor

        from kernbench.kernels import foreign

        base = foreign.of_numpy(base) if isinstance(base, np.ndarray) else base
        return TensorDescriptor(base, list(self.shape), list(self.strides), list(self.block))


def blocks(
    function: Any, roles: Roles, call: HostCall, config: Any, meta: Mapping[str, Any]
) -> dict[str, tuple[int, ...] | None]:
    """The block of each descriptor parameter; None where nothing says it.

    Args:
        function: the ``@triton.jit`` function.
        roles: its parameters'.
        call: a launch of it in the file's host code.
        config: the autotuner's configuration that ``meta`` is of, or None.
        meta: all constexprs.
    """
    offsets = _offsets(function)
    hooked: dict[str, Any] = {n: SimpleNamespace(block_shape=None, shape=None) for n in roles.descriptors}
    hook = getattr(config, "pre_hook", None)
    if hook is not None:
        try:
            hook({**meta, **hooked})
        except Exception:  # it may look at arguments that are not there yet; the other ways are left
            hooked = {}
    found: dict[str, tuple[int, ...] | None] = {}
    for name in roles.descriptors:
        block = _whole(getattr(hooked.get(name), "block_shape", None)) or _of_host(name, call, meta)
        if block is None or all(n == 1 for n in block):  # a placeholder
            block = _of_offsets(function, offsets.get(name), roles, meta)
        found[name] = block
    return found


def dtype_of(name: str, call: HostCall) -> str:
    """The element type, as torch calls it, of the tensor that the host code describes; empty where nothing says it."""
    made = _making(name, call)
    if made is None:
        return ""
    base = _given(made, 0, "base") or _given(made, 0, "tensor")
    return "" if base is None else call.host.dtype_of(base)


def length_of(name: str, axis: int, call: HostCall) -> int:
    """The length of a described tensor along an axis, where it was chosen for another argument; 0 where it was not."""
    made = _making(name, call)
    base = None if made is None else _given(made, 0, "base") or _given(made, 0, "tensor")
    known = None if base is None else call.known.get(f"{ast.unparse(base)}.shape[{axis}]")
    return known if isinstance(known, int) and known > 0 else 0


def _making(name: str, call: HostCall) -> ast.Call | None:
    """Where the host code makes a descriptor."""
    pending = [call.exprs[name]] if name in call.exprs else []
    for _ in range(8):
        if not pending:
            break
        node = pending.pop(0)
        if isinstance(node, ast.Name):
            pending += call.host.assigned.get(node.id, [])
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in MADE_BY:
                return node
    return None


def _given(made: ast.Call, at: int, name: str) -> ast.expr | None:
    return next((k.value for k in made.keywords if k.arg == name), made.args[at] if len(made.args) > at else None)


def _of_host(name: str, call: HostCall, meta: Mapping[str, Any]) -> tuple[int, ...] | None:
    made = _making(name, call)
    if made is None:
        return None
    short = isinstance(made.func, ast.Attribute) and made.func.attr == "from_tensor"
    node = _given(made, 1 if short else 3, "block_shape")
    for _ in range(4):
        if isinstance(node, ast.Name):
            node = next(iter(call.host.assigned.get(node.id, [])), None)
    if not isinstance(node, ast.List | ast.Tuple):
        return None
    sizes = []
    for part in node.elts:
        value = meta.get(part.id) if isinstance(part, ast.Name) else None
        try:
            sizes.append(value if isinstance(value, int) else call.evaluated(part))
        except Unknown:
            return None
    return _whole(sizes)


def _whole(sizes: Any) -> tuple[int, ...] | None:
    if not isinstance(sizes, list | tuple) or not sizes or not all(isinstance(n, int) and n > 0 for n in sizes):
        return None
    return tuple(sizes)


def _offsets(function: Any) -> dict[str, list[ast.expr]]:
    """Parameter -> the offsets of one of its loads or stores."""
    flow, found = flow_of(function.fn), dict[str, list[ast.expr]]()
    for name, call in flow.calls:
        owner = flow.method_of(call) if name in ("load", "store") else ""
        at = call.args[:1]
        if name in _BY_NAME and call.args and isinstance(call.args[0], ast.Name):
            owner, at = call.args[0].id, call.args[1:2]
        if owner in flow.params and at and isinstance(at[0], ast.List | ast.Tuple):
            found.setdefault(owner, at[0].elts)
    return found


def _of_offsets(
    function: Any, offsets: list[ast.expr] | None, roles: Roles, meta: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """Blocks as wide as the steps that offsets take."""
    if offsets is None:
        return None
    flow, sizes = flow_of(function.fn), []
    for offset in offsets:
        pending, seen, size = [offset], set[str](), None
        while pending and size is None:
            node = pending.pop(0)
            if isinstance(node, ast.Name) and node.id in roles.constexprs:
                value = meta.get(node.id)
                size = value if isinstance(value, int) and value > 1 and value & (value - 1) == 0 else None
            elif isinstance(node, ast.Name) and node.id not in seen:
                seen.add(node.id)
                pending += reversed(flow.assigned.get(node.id, []))
            elif (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)) or (
                isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
            ):
                pending += [node.right, node.left]
        if size is None:
            return None
        sizes.append(size)
    return tuple(sizes)
