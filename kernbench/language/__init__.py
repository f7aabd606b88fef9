"""Communication inside Triton kernels: between the programs of a device, and between devices (ranks).

Use it in ``@triton.jit`` functions beside ``triton.language``::

    import kernbench.language as kl

    @triton.jit
    def shift(src, dst, flag, n, BLOCK: tl.constexpr):
        peer = (kl.rank() + 1) % kl.num_ranks()
        for i in range(0, n, BLOCK):
            at = i + tl.arange(0, BLOCK)
            kl.put(dst + at, tl.load(src + at, mask=at < n), peer, mask=at < n)
        kl.signal(flag, peer, 1)   # arrives behind what was put
        kl.wait(flag, 1)           # the left neighbour's

Pointers that :func:`remote`, :func:`put` and :func:`signal` take to other ranks are into *symmetric* memory, which
``ctx.distributed.symmetric_memory.zeros(...)`` makes on every rank at the same address. A kernel that waits runs one
program on each PE at most, all at the same time. ``docs/device-communication.md`` has the whole picture.

Every function here is lowered by Triton to a call of an external function; only KernBench runs it.
"""

from __future__ import annotations

from typing import Any

try:
    from triton.language import core
except ImportError as error:
    raise ImportError(
        "kernbench.language is for Triton kernels and needs Triton: pip install 'kernbench[triton]' (Linux)"
    ) from error

__all__ = [
    "barrier",
    "copy",
    "num_pes",
    "num_ranks",
    "pe",
    "program",
    "put",
    "put_signal",
    "rank",
    "recv",
    "remote",
    "send",
    "signal",
    "wait",
]

OWN = -1
"""As a rank: the one that the program runs on."""
_COMPARE = {"==": "eq", "!=": "ne", ">": "gt", ">=": "ge", "<": "lt", "<=": "le"}


def _call(symbol: str, operands: list[Any], result: Any, semantic: Any, pure: bool = False) -> Any:
    """A call of an external function of KernBench's."""
    handles = [semantic.to_tensor(x).handle for x in operands]
    builder = semantic.builder
    made = builder.create_extern_elementwise("", "", f"kb_{symbol}", handles, result.to_ir(builder), pure)
    return core.tensor(made, result)


def _constant(x: Any) -> Any:
    return x.value if isinstance(x, core.constexpr) else x


def _pointee(function: str, ptr: Any) -> Any:
    """What a pointer points to, where one place is meant and not a block of them."""
    kind = getattr(ptr, "type", None)
    if kind is None or not kind.is_ptr():
        raise TypeError(f"{function}: expected one pointer, got {kind}")
    return kind.element_ty


@core.extern
def rank(_semantic: Any = None) -> Any:
    """The number of this rank, int32, as ``ctx.distributed.get_rank()`` says it."""
    return _call("rank", [0], core.int32, _semantic, True)


@core.extern
def num_ranks(_semantic: Any = None) -> Any:
    """How many ranks there are, int32."""
    return _call("num_ranks", [0], core.int32, _semantic, True)


@core.extern
def pe(_semantic: Any = None) -> Any:
    """The number of the PE this program runs on, int32."""
    return _call("pe", [0], core.int32, _semantic, True)


@core.extern
def num_pes(_semantic: Any = None) -> Any:
    """How many PEs this rank has, int32: the most programs a kernel that waits may have."""
    return _call("num_pes", [0], core.int32, _semantic, True)


@core.extern
def program(_semantic: Any = None) -> Any:
    """This program's linear id, x fastest, int32: what :func:`send` and :func:`recv` call it."""
    return _call("program", [0], core.int32, _semantic, True)


@core.extern
def remote(ptr: Any, rank: Any, _semantic: Any = None) -> Any:
    """The same place in another rank's memory.

    Args:
        ptr: a pointer or a block of pointers into symmetric memory of this rank.
        rank: int32 scalar. This rank's own number gives ``ptr`` back.
    Returns:
        What ``tl.load``, ``tl.store`` and atomics then reach in that rank's memory, over the network.
    """
    return _call("remote", [ptr, rank], _semantic.to_tensor(ptr).type, _semantic, True)


@core.extern
def put(dst: Any, value: Any, rank: Any, mask: Any = None, _semantic: Any = None) -> Any:
    """Store in another rank's memory: ``tl.store(remote(dst, rank), value, mask)``. It goes on its way at once;
    :func:`signal` says when it has arrived."""
    return core.store(remote(dst, rank, _semantic=_semantic), value, mask=mask, _semantic=_semantic)


@core.extern
def copy(dst: Any, src: Any, count: Any, rank: Any = OWN, _semantic: Any = None) -> Any:
    """Copy contiguous elements from this rank's memory to another's, without a way through the scratchpad: the program
    goes on at once, and the PE's DMA does the rest. :func:`signal` says when it has arrived.

    Args:
        dst: pointer to the first element, in symmetric memory where the rank is another one.
        src: pointer to the first element, of the same type.
        count: elements, integer scalar.
        rank: int32 scalar; this rank's own without.
    """
    if _pointee("copy", dst) != _pointee("copy", src):
        raise TypeError(f"copy: dst points to {dst.type.element_ty}, src to {src.type.element_ty}")
    return _call("copy", [dst, src, count, rank], core.int32, _semantic)


@core.extern
def signal(ptr: Any, rank: Any = OWN, value: Any = 1, op: Any = "set", _semantic: Any = None) -> Any:
    """Change a flag of a rank, behind all that this program read and wrote before, on whichever rank: whoever waits for
    the flag finds that written, and may overwrite what was read.

    Args:
        ptr: a pointer to one int32 or int64, in symmetric memory where the rank is another one.
        rank: int32 scalar; this rank's own without.
        value: integer scalar.
        op: ``"set"`` or ``"add"``.
    """
    kind, how = _pointee("signal", ptr), _constant(op)
    if how not in ("set", "add"):
        raise ValueError(f"signal: op is 'set' or 'add', not {how!r}")
    value = core.cast(_semantic.to_tensor(value), kind, _semantic=_semantic)
    return _call(f"signal_{how}", [ptr, rank, value], core.int32, _semantic)


@core.extern
def put_signal(
    dst: Any,
    value: Any,
    ptr: Any,
    rank: Any,
    signal_value: Any = 1,
    op: Any = "set",
    mask: Any = None,
    _semantic: Any = None,
) -> Any:
    """:func:`put` of ``value`` to ``dst``, then :func:`signal` of ``signal_value`` to ``ptr``, on the same rank."""
    put(dst, value, rank, mask, _semantic=_semantic)
    return signal(ptr, rank, signal_value, op, _semantic=_semantic)


@core.extern
def wait(ptr: Any, value: Any, cmp: Any = ">=", _semantic: Any = None) -> Any:
    """Wait until a flag in this rank's memory compares with ``value`` as told, and return what it then is. What this
    program reads and writes afterwards comes after what those who signalled wrote before.

    Args:
        ptr: a pointer to one int32 or int64.
        value: integer scalar.
        cmp: ``">="``, ``">"``, ``"=="``, ``"!="``, ``"<="`` or ``"<"``.
    """
    kind, how = _pointee("wait", ptr), _constant(cmp)
    if how not in _COMPARE:
        raise ValueError(f"wait: cmp is one of {', '.join(_COMPARE)}, not {how!r}")
    value = core.cast(_semantic.to_tensor(value), kind, _semantic=_semantic)
    return _call(f"wait_{_COMPARE[how]}", [ptr, value], kind, _semantic)


@core.extern
def send(value: Any, program: Any, rank: Any = OWN, _semantic: Any = None) -> Any:
    """Send a block or a scalar to a program, from scratchpad to scratchpad. The other has two slots for messages from
    each program: a third one waits until the first has been received. Orders no memory.

    Args:
        value: what to send.
        program: int32 scalar, linear id in the grid of the same launch (of that rank's launch with the same place among
            its launches that communicate).
        rank: int32 scalar; this rank's own without.
    """
    kind = _semantic.to_tensor(value).type
    nothing = kind.with_element_ty(core.int32) if kind.is_block() else core.int32
    return _call("send", [value, program, rank], nothing, _semantic)


@core.extern
def recv(shape: Any, dtype: Any, program: Any, rank: Any = OWN, _semantic: Any = None) -> Any:
    """The next message from a program.

    Args:
        shape: of what was sent; ``()`` for a scalar.
        dtype: likewise.
        program, rank: who sends, as for :func:`send`.
    """
    sizes = [_constant(n) for n in _constant(shape)]
    kind = _constant(dtype)
    if sizes:
        like = core.full(sizes, 0, kind, _semantic=_semantic)
    else:
        like = core.cast(_semantic.to_tensor(0), kind, _semantic=_semantic)
    return _call("recv", [like, program, rank], like.type, _semantic)


@core.extern
def barrier(scope: Any = "rank", _semantic: Any = None) -> Any:
    """Wait until every program of this launch has come here (``"rank"``), or every program of every rank's launch
    (``"world"``). What any of them wrote before, all find afterwards."""
    how = _constant(scope)
    if how not in ("rank", "world"):
        raise ValueError(f"barrier: scope is 'rank' or 'world', not {how!r}")
    return _call(f"barrier_{how}", [0], core.int32, _semantic)
