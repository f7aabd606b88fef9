"""Kernels in Triton's own interpreter: plain Python, in which ``breakpoint()`` and ``print`` work.

Triton decides when it is imported: with ``TRITON_INTERPRET=1`` in the environment every kernel made is an interpreted
one. Inside a KernBench context such kernels run on the simulated memory itself: the interpreter reads and writes real
addresses, and the bytes behind a simulated tensor are real. They take no simulated time.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kernbench.kernels import device as devices
from kernbench.kernels import foreign
from kernbench.memory import Allocation


class HostView:
    """Host memory under the names by which the interpreter asks a tensor; always of all of its storage."""

    def __init__(self, address: int, dtype: Any, owner: Any = None) -> None:
        self.address, self.dtype, self.owner = address, dtype, owner
        """``owner`` keeps the memory alive."""

    @classmethod
    def of(cls, array: np.ndarray) -> HostView:
        return cls(array.__array_interface__["data"][0], array.dtype, array)

    def data_ptr(self) -> int:
        return self.address

    def untyped_storage(self) -> HostView:
        return self

    def cpu(self) -> HostView:
        return self

    def copy_(self, other: HostView) -> HostView:
        """The interpreter worked in place: there is nothing to bring back."""
        return self

    def new_empty(self, *_: Any, **__: Any) -> HostView:
        return HostView(self.address, self.dtype, self.owner)

    def set_(self, storage: HostView, *_: Any) -> HostView:
        self.address, self.owner = storage.address, storage.owner
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return ()

    stride = size


def _on_host(arg: Any, touched: list[Allocation]) -> Any:
    """An argument with its memory at a real address."""
    if isinstance(arg, np.ndarray | foreign.HostArray):
        return HostView.of(arg if isinstance(arg, np.ndarray) else arg.array)
    if isinstance(arg, tuple):
        return tuple(_on_host(a, touched) for a in arg)
    if hasattr(arg, "block_shape") and hasattr(arg, "base"):
        moved = copy.copy(arg)
        moved.base = _on_host(arg.base, touched)
        return moved
    if not hasattr(arg, "data_ptr") or isinstance(arg, HostView) or foreign.is_foreign(arg):
        return arg
    address = int(arg.data_ptr())
    found = devices.current().space.find(address)
    if found is None:
        return arg
    touched.append(found)
    first = found.bytes.__array_interface__["data"][0]
    return HostView(first + address - found.base, getattr(arg.dtype, "storage", arg.dtype), found.bytes)


def with_floats(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The interpreter's ``_implicit_cvt`` that makes a float argument a value of the language too, as compiling does:
    kernels call its methods."""

    @functools.wraps(convert)
    def converted(arg: Any) -> Any:
        if type(arg) is not float:
            return convert(arg)
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        return tl.tensor(TensorHandle(np.array([arg], np.float32), tl.float32), tl.float32)

    return converted


def on_simulated_memory(call: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter's launch, with arguments in simulated memory or in numpy arrays."""

    @functools.wraps(call)
    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        touched: list[Allocation] = []
        args = tuple(_on_host(a, touched) for a in args)
        kwargs = {name: _on_host(a, touched) for name, a in kwargs.items()}
        try:
            return call(self, *args, **kwargs)
        finally:
            for allocation in touched:
                allocation.unwritten = None  # which bytes it wrote, the interpreter does not say
                allocation.mark_valid(0, allocation.nbytes)
                allocation.wrote()

    return launch
