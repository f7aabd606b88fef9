"""Which values a timing-only run still has to compute, and which kernels must run one program at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kernbench.kernels.ttir import Block, Function, Op, Pointer, Tensor, Type, Value

ATOMICS = frozenset({"tt.atomic_rmw", "tt.atomic_cas"})


def synchronises(functions: Iterable[Function]) -> bool:
    """Whether programs may wait for each other through memory: a loop that polls, or a lock."""
    for function in functions:
        if any(op.name == "scf.while" and _polls(function, op) for op in function.walk()):
            return True
        claims = [op for op in function.walk() if _claims(op)]
        if claims and not _independent(function, claims):
            return True
    return False


def orders(functions: Iterable[Function]) -> bool:
    """Whether atomics may order programs: somebody looks at what one returned."""
    for function in functions:
        ops = list(function.walk())
        used = {v for op in ops for v in op.operands}
        used |= {v for op in ops for _, handed in op.successors for v in handed}
        if any(op.name in ATOMICS and any(r in used for r in op.results) for op in ops):
            return True
    return False


def _polls(function: Function, loop: Op) -> bool:
    """Whether the end of a loop depends on memory that the kernel changes, inside the loop, or that others may."""
    reads = [op for op in loop.walk() if op.name in ATOMICS or op.name == "tt.load"]
    if not reads:
        return False
    flow = _Flow(function)
    ends = _backwards(flow, [op.operands[0] for op in loop.walk() if op.name == "scf.condition"])
    reads = [op for op in reads if any(r in ends for r in op.results)]
    if not reads:
        return False
    if any(op.name in ATOMICS or op.attrs.get("isVolatile") for op in reads):
        return True
    origin, written = pointer_origins(function), set(written_args(function))
    return any(not (args := origin.get(op.operands[0])) or args & written for op in reads)


def _claims(op: Op) -> bool:
    """Whether an operation can take or release a lock."""
    return op.name == "tt.atomic_cas" or (op.name == "tt.atomic_rmw" and op.attrs["words"][0] == "exch")


def _independent(function: Function, claims: list[Op]) -> bool:
    """Whether what compare-and-swap and exchange find decides no control flow, and each is executed once and alone uses
    its memory: all programs can then do it together, in their order."""
    blocks = function.body.blocks
    if len(blocks) > 1 or not all(any(op is claim for op in blocks[0].ops) for claim in claims):
        return False
    ops = list(function.walk())
    if any(op.name in ("tt.call", "tt.int_to_ptr") for op in ops):
        return False
    origin = pointer_origins(function)
    touching = [op for op in ops if op.name in ATOMICS or op.name in ("tt.load", "tt.store")]
    for claim in claims:
        mine = origin.get(claim.operands[0], set())
        if not mine or any(mine & origin.get(op.operands[0], set()) for op in touching if op is not claim):
            return False
    deciding = {v for op in ops for v in op.operands[: _CONDITIONS.get(op.name, 0)]}
    return not any(r in _backwards(_Flow(function), deciding) for claim in claims for r in claim.results)


_CONDITIONS = {"scf.if": 1, "scf.condition": 1, "scf.for": 3, "cf.cond_br": 1}
"""How many of an operation's operands decide which way control goes."""


def written_args(function: Function) -> tuple[int, ...]:
    """Pointer parameters that a function may write through: those that stores and atomics go to, or all where that
    is not plain to see."""
    entry, origin = function.body.entry.args, pointer_origins(function)
    found: set[int] = set()
    for op in function.walk():
        if op.name in ("tt.call", "tt.int_to_ptr"):
            return tuple(i for i, v in enumerate(entry) if isinstance(v.type, Pointer))
        if op.name in ATOMICS or op.name in ("tt.store", "kb.copy", "kb.signal"):
            found |= origin.get(op.operands[0], set())
    return tuple(sorted(found))


def pointer_origins(function: Function) -> dict[Value, set[int]]:
    """Each value -> the pointer parameters it may be made from."""
    entry = function.body.entry.args
    origin: dict[Value, set[int]] = {v: {i} for i, v in enumerate(entry) if isinstance(v.type, Pointer)}
    ops = list(function.walk())
    changed = True
    while changed:
        changed = False
        for op in ops:
            for source, target in _pointer_flow(op):
                if not is_pointer(target.type):
                    continue
                if extra := origin.get(source, set()) - origin.setdefault(target, set()):
                    origin[target] |= extra
                    changed = True
    return origin


def is_pointer(kind: Type) -> bool:
    """Whether a type is that of a pointer or of a block of pointers."""
    return isinstance(kind.elem if isinstance(kind, Tensor) else kind, Pointer)


def _pointer_flow(op: Op) -> Iterator[tuple[Value, Value]]:
    """(from, to) for every value an operation hands on, into and out of its regions too."""
    for result in op.results:
        for operand in op.operands:
            yield operand, result
    for successor, handed in op.successors:
        yield from zip(handed, successor.args, strict=False)
    for region in op.regions:
        entry = region.entry
        yield from zip(op.operands[3:] if op.name == "scf.for" else op.operands, _carried(op, entry), strict=False)
        if entry.ops:
            last = entry.ops[-1]
            handed = last.operands[1:] if last.name == "scf.condition" else last.operands
            yield from zip(handed, op.results, strict=False)
            for other in op.regions:
                yield from zip(handed, _carried(op, other.entry), strict=False)


def _carried(op: Op, block: Block) -> tuple[Value, ...]:
    return block.args[1:] if op.name == "scf.for" else block.args


def needed_values(function: Function, data: frozenset[Value]) -> frozenset[Value]:
    """The backward slice from everything that decides what a kernel does: addresses, masks, branches, trip counts,
    what atomics return where that is used, and what a store writes where that is not data anyway."""
    flow = _Flow(function)
    return _backwards(flow, flow.seeds(data))


def deciding_args(function: Function, needed: Iterable[Value]) -> tuple[int, ...] | None:
    """Pointer parameters whose memory, as a launch finds it, decides all of ``needed``: what those values are read from
    and, where the function writes there itself, what it writes. None where that is not plain to see: a pointer that was
    itself read from memory, or made from a number, may lead anywhere."""
    flow, origin = _Flow(function), pointer_origins(function)
    if any(op.name in ("tt.load", "tt.int_to_ptr") and any(is_pointer(r.type) for r in op.results) for op in flow.ops):
        return None
    decide, args = set(needed), set[int]()
    before = (-1, -1)
    while before != (len(decide), len(args)):
        before = len(decide), len(args)
        for op in flow.ops:
            if op.name not in ATOMICS and op.name not in ("tt.load", "tt.store"):
                continue
            there = origin.get(op.operands[0], set())
            if any(r in decide for r in op.results) or (op.name != "tt.load" and args & there):
                if not there:
                    return None
                args |= there
                decide |= _backwards(flow, op.operands)
    return tuple(sorted(args))


def _backwards(flow: _Flow, seeds: Iterable[Value]) -> frozenset[Value]:
    """All that ``seeds`` are computed from, and they themselves."""
    pending = list(seeds)
    found: set[Value] = set()
    while pending:
        value = pending.pop()
        if value in found:
            continue
        found.add(value)
        pending.extend(flow.sources.get(value, ()))
    return frozenset(found)


def needed_sources(function: Function) -> dict[Value, list[Value]]:
    """Each value -> those it is computed from, through loops and branches."""
    return _Flow(function).sources


class _Flow:
    """From each value to those it is computed from, through loops and branches."""

    def __init__(self, function: Function) -> None:
        self.sources: dict[Value, list[Value]] = {}
        self.ops: list[Op] = []
        self.used: set[Value] = set()
        for block in function.body.blocks:
            self._block(block)
        sent = [op.operands[0] for op in self.ops if op.name == "kb.send"]
        for op in self.ops:
            if op.name == "kb.recv":
                self._link(op.results * len(sent), sent)

    def seeds(self, data: frozenset[Value]) -> list[Value]:
        found: list[Value] = []
        for op in self.ops:
            if op.name == "tt.store":
                found += [v for i, v in enumerate(op.operands) if i != 1]
                found += [v for v in op.operands[1:2] if v not in data]
            elif op.name in ATOMICS:
                used = any(r in self.used for r in op.results)
                found += op.operands if used else [v for v in op.operands if v not in data or v is op.operands[0]]
                if op.name == "tt.atomic_rmw":
                    found += op.operands[2:]
            elif op.name == "tt.load":
                found += op.operands[:2]
            elif op.name in ("kb.send", "kb.recv"):
                found += op.operands[1:]
            elif op.name in ("kb.copy", "kb.signal", "kb.wait", "kb.remote"):
                found += op.operands
            elif op.name in ("scf.if", "cf.cond_br"):
                found += op.operands[:1]
            elif op.name == "scf.for":
                found += op.operands[:3]
            elif op.name == "scf.condition":
                found += op.operands[:1]
            elif op.name in ("tt.call", "tt.return", "tt.assert"):
                found += op.operands
        return found

    def _block(self, block: Block) -> None:
        for op in block.ops:
            self.ops.append(op)
            self.used.update(op.operands)
            for successor, handed in op.successors:
                self._link(successor.args, handed)
                self.used.update(handed)
            for result in op.results:
                self.sources.setdefault(result, []).extend(op.operands if not op.regions else ())
            if op.name == "scf.for":
                body = op.regions[0].entry
                self._block(body)
                self.sources.setdefault(body.args[0], []).extend(op.operands[:3])
                for values in (op.operands[3:], body.ops[-1].operands if body.ops else ()):
                    self._link(body.args[1:], values)
                    self._link(op.results, values)
            elif op.name == "scf.while":
                before, after = op.regions[0].entry, op.regions[1].entry
                self._block(before)
                self._block(after)
                self._link(before.args, op.operands)
                self._link(before.args, after.ops[-1].operands if after.ops else ())
                self._link(after.args, before.ops[-1].operands[1:])
                self._link(op.results, before.ops[-1].operands[1:])
            elif op.name == "scf.if":
                for region in op.regions:
                    self._block(region.entry)
                    if region.entry.ops:
                        self._link(op.results, region.entry.ops[-1].operands)
            else:
                for region in op.regions:  # a combine function: its results are the operation's
                    for inner in region.blocks:
                        for result in op.results:
                            self.sources[result].extend(v for o in inner.ops for v in o.operands)
                for result in op.results:
                    if op.regions:
                        self.sources[result].extend(op.operands)

    def _link(self, targets: Iterable[Value], sources: Iterable[Value]) -> None:
        for target, source in zip(targets, sources, strict=False):
            self.sources.setdefault(target, []).append(source)
            self.used.add(source)
