"""Tensor descriptors and block pointers, rewritten into blocks of pointers before anything else looks at a kernel.

Both are a base with a shape, strides and (a block pointer) offsets, and each access names a block by where it starts.
What is left after the rewrite is plain address arithmetic, loads and stores, which the executor, the scratchpad count
and the record already treat: bounds become a mask, which is clipped exactly as the hardware would.

A value that is a descriptor becomes several values wherever it goes: into loops, branches and calls too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kernbench.kernels.errors import KernelError
from kernbench.kernels.ttir import (
    NOWHERE,
    Arg,
    Block,
    Function,
    Loc,
    Module,
    Op,
    Pointer,
    Scalar,
    Tensor,
    TensorDesc,
    Type,
    Value,
)

MARK = "kernbench.descriptor"
"""An operation without effect: its operands are a descriptor's base and strides."""
_I1, _I32, _I64 = Scalar("i1"), Scalar("i32"), Scalar("i64")
PAD_NAN = 2
"""What Triton's padding attributes call padding with NaN."""
PADDING = "kernbench.padding"
"""An attribute of a kernel's parameter that is a descriptor: its padding."""
_REDUCE = {"add": "add", "min": "min", "max": "max", "and": "and", "or": "or", "xor": "xor"}


def is_block_type(kind: Type) -> bool:
    """Whether a value of this type names blocks of memory: a descriptor or a block pointer."""
    return isinstance(kind, TensorDesc) or (isinstance(kind, Pointer) and isinstance(kind.pointee, Tensor))


def lower(module: Module) -> Module:
    """The module without descriptors and block pointers, changed in place.

    A descriptor parameter of a kernel becomes a pointer; the shape and strides behind it are parameters already.

    Raises:
        KernelError: a use of one that has no meaning here; the message names the source line.
    """
    for function in module.functions.values():
        values = [v for op in function.walk() for v in (*op.results, *op.operands)]
        if any(is_block_type(v.type) for v in (*function.body.entry.args, *values)):
            _Lowering(function).run()
    return module


@dataclass(frozen=True)
class _Line:
    """One axis of a block."""

    index: Value
    """0, 1, 2 ... along it."""
    step: Value
    """Those in elements of memory, over the whole block."""


@dataclass(frozen=True)
class _View:
    """The parts of one descriptor or block pointer."""

    block: Tensor
    base: Value
    shape: tuple[Value, ...]
    strides: tuple[Value, ...]
    offsets: tuple[Value, ...]
    """Where a block pointer points; empty for a descriptor."""
    nan: Value
    """i1: whether elements out of bounds read as NaN, else as zero."""
    lines: tuple[_Line, ...] = ()
    """What does not depend on where a block starts, one for each axis; empty where it was not worked out ahead."""

    def parts(self) -> tuple[Value, ...]:
        return (self.base, *self.shape, *self.strides, *self.offsets, self.nan)


def _block_of(kind: Type) -> Tensor:
    block = kind.block if isinstance(kind, TensorDesc) else kind.pointee  # type: ignore[union-attr]
    assert isinstance(block, Tensor)
    return block


class _Offset(Value):
    """Stands for one offset of a block pointer until its definition has been rewritten."""

    __slots__ = ("axis", "of")

    def __init__(self, of: Value, axis: int) -> None:
        super().__init__(of.name, _I64)
        self.of, self.axis = of, axis


class _Lowering:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.views: dict[Value, _View] = {}
        self.zero_padded: set[Value] = set()
        """Constants false that stand for padding with zero."""
        self.ops: list[Op] = []
        """Of the block being rewritten."""
        self.loc: Loc = NOWHERE

    def run(self) -> None:
        body = self.function.body
        prologue: list[Op] = []
        self.ops = prologue
        self._parameters(body.entry)
        self.function.results = tuple(t for r in self.function.results for t in _spread_type(r))
        for block in body.blocks[1:]:
            block.args = self._expand_args(block.args)
        for block in body.blocks:
            self._block(block)
        body.entry.ops[:0] = prologue

    def _parameters(self, entry: Block) -> None:
        """Of a kernel, a descriptor with the shape and strides that follow it; of other functions, all its parts."""
        if not self.function.public:
            before = entry.args
            entry.args = self._expand_args(before)
            names = {v: a.name for v, a in zip(before, self.function.args, strict=True)}
            self.function.args = tuple(Arg(names.get(v, v.name.lstrip("%")), v.type, {}) for v in entry.args)
            return
        args, values = list(self.function.args), list(entry.args)
        for i, value in enumerate(values):
            if not is_block_type(value.type):
                continue
            block = _block_of(value.type)
            rank = len(block.shape)
            values[i] = Value(value.name, Pointer(block.elem))
            args[i] = Arg(args[i].name, values[i].type, args[i].attrs)
            behind = values[i + 1 : i + 1 + 2 * rank]
            if len(behind) < 2 * rank or any(v.type not in (_I32, _I64) for v in behind):
                raise KernelError(
                    f"kernel '{self.function.name}': the descriptor parameter '{args[i].name}' is not followed by its "
                    "shape and strides, so this text is not as Triton's front end makes it"
                )
            shape, strides = behind[:rank], behind[rank:]
            nan = self._padding(int(args[i].attrs.get(PADDING, 1)) == PAD_NAN)
            view = _View(block, values[i], tuple(map(self._wide, shape)), tuple(map(self._wide, strides)), (), nan)
            self.views[value] = self._with_lines(view)
            users = (op.loc for op in self.function.walk() if value in op.operands)
            self._checked(view, next(users, self.function.loc))
        self.function.args, entry.args = tuple(args), tuple(values)

    def _expand_args(self, args: Sequence[Value]) -> tuple[Value, ...]:
        """Arguments of a block with each descriptor as fresh values for its parts."""
        out: list[Value] = []
        for value in args:
            if not is_block_type(value.type):
                out.append(value)
                continue
            parts = [Value(f"{value.name}.{i}", t) for i, t in enumerate(_spread_type(value.type))]
            block = _block_of(value.type)
            n = len(block.shape)
            offsets = () if isinstance(value.type, TensorDesc) else tuple(parts[1 + 2 * n : 1 + 3 * n])
            shape, strides = tuple(parts[1 : 1 + n]), tuple(parts[1 + n : 1 + 2 * n])
            self.views[value] = _View(block, parts[0], shape, strides, offsets, parts[-1])
            out += parts
        return tuple(out)

    def _spread(self, values: Iterable[Value]) -> tuple[Value, ...]:
        out: list[Value] = []
        for v in values:
            if isinstance(v, _Offset):
                out.append(self.views[v.of].offsets[v.axis])
            else:
                out += self.views[v].parts() if is_block_type(v.type) else (v,)
        return tuple(out)

    def _block(self, block: Block) -> None:
        outer, self.ops = self.ops, []
        for op in block.ops:
            self.loc = op.loc
            rewrite = _REWRITES.get(op.name)
            if rewrite is not None and (rewrite is not _Lowering._access or is_block_type(op.operands[0].type)):
                rewrite(self, op)
            else:
                self._keep(op)
        block.ops, self.ops = self.ops, outer

    def _keep(self, op: Op) -> None:
        """An operation that stays, with what it takes and gives spread out, and its regions rewritten."""
        if op.name == "scf.for":
            self._fix_advanced(op)
        for region in op.regions:
            for block in region.blocks:
                block.args = self._expand_args(block.args)
                self._block(block)
        op.operands = self._spread(op.operands)
        op.results = self._expand_args(op.results)
        op.successors = tuple((target, self._spread(handed)) for target, handed in op.successors)
        self.ops.append(op)

    def _fix_advanced(self, op: Op) -> None:
        """Of block pointers that a loop only advances, carry the offsets alone: the rest stays what it was."""
        body = op.regions[0].entry
        last = body.ops[-1]
        advanced = {r: o.operands[0] for o in body.ops if o.name == "tt.advance" for r in o.results}
        starts, args, yields, results = list(op.operands), list(body.args), list(last.operands), list(op.results)
        for i in reversed(range(len(results))):
            arg, source = args[i + 1], yields[i]
            while source in advanced:
                source = advanced[source]
            if not is_block_type(arg.type) or source is not arg:
                continue
            view = self.views[starts[i + 3]]
            rank = len(view.offsets)
            moving = [[Value(f"{v.name}.{d}", _I64) for d in range(rank)] for v in (arg, results[i])]
            self.views[arg] = replace(view, offsets=tuple(moving[0]))
            self.views[results[i]] = replace(view, offsets=tuple(moving[1]))
            starts[i + 3 : i + 4] = view.offsets
            args[i + 1 : i + 2], results[i : i + 1] = moving
            yields[i : i + 1] = [_Offset(yields[i], d) for d in range(rank)]
        op.operands, body.args, op.results = tuple(starts), tuple(args), tuple(results)
        last.operands = tuple(yields)

    # What makes and moves them.

    def _make(self, op: Op) -> None:
        kind = op.results[0].type
        block = _block_of(kind)
        n = len(block.shape)
        shape, strides, offsets = (op.operands[1 + i * n : 1 + (i + 1) * n] for i in range(3))
        view = _View(
            block,
            op.operands[0],
            tuple(map(self._wide, shape)),
            tuple(map(self._wide, strides)),
            tuple(map(self._wide, offsets)),
            self._padding(int(op.attrs.get("padding", 1)) == PAD_NAN),
        )
        self.views[op.results[0]] = self._with_lines(view)
        if isinstance(kind, TensorDesc):
            self._checked(view, op.loc)

    def _checked(self, view: _View, loc: Loc) -> None:
        """Leave a mark where a descriptor begins to exist, for the checks of its alignment."""
        self.ops.append(Op(MARK, (), (view.base, *view.strides), {}, loc=loc))

    def _with_lines(self, view: _View) -> _View:
        shape = view.block.shape
        return replace(view, lines=tuple(self._line(view, shape, d) for d in range(len(shape))))

    def _advance(self, op: Op) -> None:
        view = self.views[op.operands[0]]
        moved = tuple(
            self._op("arith.addi", _I64, (at, self._wide(by)))
            for at, by in zip(view.offsets, op.operands[1:], strict=True)
        )
        self.views[op.results[0]] = replace(view, offsets=moved)

    def _select(self, op: Op) -> None:
        condition, a, b = op.operands
        if not is_block_type(a.type):
            return self._keep(op)
        made = self._expand_args(op.results)
        for result, x, y in zip(made, self.views[a].parts(), self.views[b].parts(), strict=True):
            self.ops.append(Op("arith.select", (result,), (condition, x, y), {}, loc=self.loc))

    # What uses them.

    def _access(self, op: Op) -> None:
        """``tl.load`` and ``tl.store`` of a block pointer."""
        view = self.views[op.operands[0]]
        checked = [int(d) for d in op.attrs.get("boundaryCheck", ())]
        starts = [self._wide(v) for v in view.offsets]
        pointers, mask = self._pointers(view, view.block.shape, starts, checked)
        attrs = {k: v for k, v in op.attrs.items() if k not in ("boundaryCheck", "padding")}
        if op.name == "tt.store":
            self._store(op, pointers, op.operands[1], mask, attrs)
            return
        other = None
        if mask is not None and int(op.attrs.get("padding", 0)) == PAD_NAN:
            other = self._constant(float("nan"), view.block)
        self._load(op, view.block, pointers, mask, other, attrs)

    def _descriptor_load(self, op: Op) -> None:
        view = self.views[op.operands[0]]
        starts = [self._wide(v) for v in op.operands[1:]]
        pointers, mask = self._pointers(view, view.block.shape, starts, range(len(starts)))
        self._load(op, view.block, pointers, mask, self._other(view, view.block), {})

    def _descriptor_store(self, op: Op) -> None:
        view = self.views[op.operands[0]]
        starts = [self._wide(v) for v in op.operands[1:-1]]
        pointers, mask = self._pointers(view, view.block.shape, starts, range(len(starts)))
        self._store(op, pointers, self._shaped(op.operands[-1], view.block.shape), mask, {})

    def _descriptor_reduce(self, op: Op) -> None:
        view = self.views[op.operands[0]]
        kind = _REDUCE.get(op.attrs["words"][0])
        if kind is None:
            raise KernelError(
                f"{op.loc[0]}:{op.loc[1]}: KernBench does not run a descriptor's atomic_{op.attrs['words'][0]}. "
                "What to do: use atomic_add, min, max, and, or, xor"
            )
        if kind == "add" and not str(view.block.elem).startswith("i"):
            kind = "fadd"
        if kind in ("min", "max") and isinstance(described := op.operands[0].type, TensorDesc) and described.unsigned:
            kind = f"u{kind}"
        starts = [self._wide(v) for v in op.operands[1:-1]]
        pointers, mask = self._pointers(view, view.block.shape, starts, range(len(starts)))
        value = self._shaped(op.operands[-1], view.block.shape)
        operands = (pointers, value) if mask is None else (pointers, value, mask)
        self._op("tt.atomic_rmw", value.type, operands, words=(kind, "relaxed", "gpu"))

    def _gathered(self, view: _View, rows: Value, column: Value) -> tuple[Tensor, Value, Value]:
        """The block of rows named one by one, its pointers and what of them is in bounds."""
        count = rows.type.shape[0] if isinstance(rows.type, Tensor) else 1
        block = Tensor((count, view.block.shape[1]), view.block.elem)
        wide = Tensor((count,), _I64)
        index = rows if rows.type == wide else self._op("arith.extsi", wide, (rows,))
        pointers, mask = self._pointers(view, block.shape, [index, self._wide(column)], (0, 1))
        assert mask is not None
        return block, pointers, mask

    def _gather(self, op: Op) -> None:
        view = self.views[op.operands[0]]
        block, pointers, mask = self._gathered(view, op.operands[1], op.operands[2])
        self._load(op, block, pointers, mask, self._other(view, block), {})

    def _scatter(self, op: Op) -> None:
        view = self.views[op.operands[0]]
        block, pointers, mask = self._gathered(view, op.operands[1], op.operands[2])
        self._store(op, pointers, self._shaped(op.operands[3], block.shape), mask, {})

    # Building operations.

    def _pointers(
        self, view: _View, dims: tuple[int, ...], starts: Sequence[Value], checked: Iterable[int]
    ) -> tuple[Value, Value | None]:
        """A block of pointers, and the mask of those in bounds along the axes ``checked``.

        A start is a scalar, or a block of indices along its axis.
        """
        rank = len(dims)
        lines = (
            view.lines
            if dims == view.block.shape and view.lines
            else tuple(
                None if isinstance(start.type, Tensor) else self._line(view, dims, d) for d, start in enumerate(starts)
            )
        )
        base = view.base
        for start, stride in zip(starts, view.strides, strict=True):
            if not isinstance(start.type, Tensor):
                base = self._op("tt.addptr", base.type, (base, self._op("arith.muli", _I64, (start, stride))))
        pointers = self._op("tt.splat", Tensor(dims, base.type), (base,))  # type: ignore[arg-type]
        mask: Value | None = None
        for d, (line, start) in enumerate(zip(lines, starts, strict=True)):
            if line is None:  # indices one by one
                index = self._along(start, rank, d)
                stride = self._op("tt.splat", index.type, (view.strides[d],))
                step = self._op("arith.muli", index.type, (index, stride))
                step = self._op("tt.broadcast", Tensor(dims, _I64), (step,))
            else:
                step, index = line.step, line.index
                if d in checked:
                    index = self._op("arith.addi", index.type, (index, self._op("tt.splat", index.type, (start,))))
            pointers = self._op("tt.addptr", pointers.type, (pointers, step))
            if d not in checked:
                continue
            column = index.type
            assert isinstance(column, Tensor)
            flags = Tensor(column.shape, _I1)
            size = self._op("tt.splat", column, (view.shape[d],))
            above = self._op("arith.cmpi", flags, (index, self._constant(0, column)), words=("sge",))
            below = self._op("arith.cmpi", flags, (index, size), words=("slt",))
            inside = self._op("arith.andi", flags, (above, below))
            inside = self._op("tt.broadcast", Tensor(dims, _I1), (inside,))
            mask = inside if mask is None else self._op("arith.andi", inside.type, (mask, inside))
        return pointers, mask

    def _line(self, view: _View, dims: tuple[int, ...], d: int) -> _Line:
        n = dims[d]
        index = self._op("tt.make_range", Tensor((n,), _I32), (), start=0, end=n)
        index = self._along(self._op("arith.extsi", Tensor((n,), _I64), (index,)), len(dims), d)
        stride = self._op("tt.splat", index.type, (view.strides[d],))
        step = self._op("arith.muli", index.type, (index, stride))
        return _Line(index, self._op("tt.broadcast", Tensor(dims, _I64), (step,)))

    def _along(self, line: Value, rank: int, d: int) -> Value:
        """A one-dimensional block as axis ``d`` of a block of a higher rank."""
        assert isinstance(line.type, Tensor)
        (n,) = line.type.shape
        for axis in range(rank):
            if axis != d:
                shape = (*(1,) * (axis + 1), n) if axis < d else (*(1,) * d, n, *(1,) * (axis - d))
                line = self._op("tt.expand_dims", Tensor(shape, _I64), (line,), axis=axis)
        return line

    def _load(
        self, op: Op, block: Tensor, pointers: Value, mask: Value | None, other: Value | None, attrs: dict[str, Any]
    ) -> None:
        operands = tuple(v for v in (pointers, mask, other) if v is not None)
        (result,) = op.results
        if result.type == block:
            self.ops.append(Op("tt.load", (result,), operands, attrs, loc=op.loc))
            return
        loaded = self._op("tt.load", block, operands)
        self.ops.append(Op("tt.reshape", (result,), (loaded,), {}, loc=op.loc))

    def _store(self, op: Op, pointers: Value, value: Value, mask: Value | None, attrs: dict[str, Any]) -> None:
        operands = (pointers, value) if mask is None else (pointers, value, mask)
        self.ops.append(Op("tt.store", (), operands, attrs, loc=op.loc))

    def _other(self, view: _View, block: Tensor) -> Value | None:
        """What is read out of bounds, None for zero."""
        if view.nan in self.zero_padded:
            return None
        if str(view.block.elem).startswith("i"):
            return None
        nan, zero = self._constant(float("nan"), block.elem), self._constant(0.0, block.elem)
        chosen = self._op("arith.select", block.elem, (view.nan, nan, zero))
        return self._op("tt.splat", block, (chosen,))

    def _shaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        kind = value.type
        assert isinstance(kind, Tensor)
        return value if kind.shape == shape else self._op("tt.reshape", Tensor(shape, kind.elem), (value,))

    def _padding(self, nan: bool | int) -> Value:
        made = self._constant(int(nan), _I1)
        if not nan:
            self.zero_padded.add(made)
        return made

    def _wide(self, value: Value) -> Value:
        return value if value.type == _I64 else self._op("arith.extsi", _I64, (value,))

    def _constant(self, value: int | float, kind: Type) -> Value:
        return self._op("arith.constant", kind, (), value=value)

    def _op(self, name: str, kind: Type, operands: tuple[Value, ...], **attrs: Any) -> Value:
        result = Value(f"%{name.partition('.')[2]}", kind)
        self.ops.append(Op(name, (result,), operands, attrs, loc=self.loc))
        return result


def _spread_type(kind: Type) -> tuple[Type, ...]:
    """The types of a descriptor's parts, in order; of anything else, its own."""
    if not is_block_type(kind):
        return (kind,)
    block = _block_of(kind)
    rank = len(block.shape)
    numbers = 2 * rank if isinstance(kind, TensorDesc) else 3 * rank
    return (Pointer(block.elem), *(_I64,) * numbers, _I1)


_REWRITES = {
    "tt.make_tensor_descriptor": _Lowering._make,
    "tt.make_tensor_ptr": _Lowering._make,
    "tt.advance": _Lowering._advance,
    "tt.load": _Lowering._access,
    "tt.store": _Lowering._access,
    "tt.descriptor_load": _Lowering._descriptor_load,
    "tt.descriptor_store": _Lowering._descriptor_store,
    "tt.descriptor_reduce": _Lowering._descriptor_reduce,
    "tt.descriptor_gather": _Lowering._gather,
    "tt.descriptor_scatter": _Lowering._scatter,
    "arith.select": _Lowering._select,
}
