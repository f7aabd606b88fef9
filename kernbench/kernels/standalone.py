"""A device with no runtime around it: one address space, and the records of what was launched in a list.

For trying a kernel on its own, for measurements and for tests::

    with StandaloneDevice() as device:
        x = device.array(np.arange(8, dtype=np.float32))
        kernel[(1,)](x, ...)
        print(x.numpy(), device.records[-1])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import sanitize
from kernbench.kernels.device import Provider, Target, set_provider
from kernbench.kernels.team import Team
from kernbench.memory import AddressSpace, Allocation, DType, dtype
from kernbench.sim_engine.oplog import KernelRecord

DEFAULT_TARGET = Target(tcm_capacity=2 * 2**20, programs_in_flight=2, pes=64)


class DeviceArray:
    """A strided view of one allocation: just enough of a tensor to launch kernels on and to read results from."""

    def __init__(
        self, allocation: Allocation, kind: DType, shape: Sequence[int], strides: Sequence[int], offset: int = 0
    ) -> None:
        self.allocation, self.dtype = allocation, kind
        self.shape, self._strides, self.offset = tuple(shape), tuple(strides), offset

    def data_ptr(self) -> int:
        """Byte address of the first element."""
        return self.allocation.base + self.offset * self.dtype.itemsize

    def stride(self, axis: int | None = None) -> Any:
        """Strides in elements, or one of them."""
        return self._strides if axis is None else self._strides[axis]

    def numel(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def element_size(self) -> int:
        return self.dtype.itemsize

    @property
    def T(self) -> DeviceArray:
        """The view with its axes in reverse."""
        return DeviceArray(self.allocation, self.dtype, self.shape[::-1], self._strides[::-1], self.offset)

    def __getitem__(self, index: Any) -> DeviceArray:
        """A view by slices and integers."""
        probe = np.lib.stride_tricks.as_strided(np.empty(1, np.int8), self.shape, self._strides, writeable=False)
        view = probe[index]
        skipped = view.__array_interface__["data"][0] - probe.__array_interface__["data"][0]
        return DeviceArray(self.allocation, self.dtype, view.shape, view.strides, self.offset + skipped)

    def _host(self) -> NDArray[Any]:
        width = self.dtype.itemsize
        strides = [s * width for s in self._strides]
        return np.ndarray(self.shape, self.dtype.storage, self.allocation.bytes, self.offset * width, strides)

    def _seen_as_bytes(self, marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """One entry per byte of this view, of an array with one per byte of the allocation."""
        width = self.dtype.itemsize
        strides = [s * width for s in self._strides] + [1]
        return np.ndarray((*self.shape, width), np.bool_, marks, self.offset * width, strides)

    def numpy(self) -> NDArray[Any]:
        """A copy in the storage dtype (ml_dtypes for bf16 and f8)."""
        return self._host().copy()

    def copy_(self, source: DeviceArray | NDArray[Any]) -> DeviceArray:
        """Write values, cast to this dtype."""
        values = source.numpy() if isinstance(source, DeviceArray) else source
        self._host()[...] = np.asarray(values).astype(self.dtype.storage)
        self.allocation.wrote()
        if self.allocation.unwritten is not None:
            self._seen_as_bytes(self.allocation.unwritten_map())[...] = False
        return self

    def zero_(self) -> DeviceArray:
        return self.copy_(np.zeros(self.shape, np.float32))


class StandaloneDevice:
    """Implements :class:`kernbench.kernels.device.Device`; current from ``with`` to its end.

    Args:
        target: the machine's numbers.
        enable_data: False for timing only.
        capacity: bytes of memory.
        clock: simulated milliseconds of a list of records on an idle machine; needed for autotuning only.
    """

    stream = 0
    member = 0

    def __init__(
        self,
        target: Target = DEFAULT_TARGET,
        enable_data: bool = True,
        capacity: int = 16 * 2**30,
        clock: Callable[[list[KernelRecord]], float] | None = None,
    ) -> None:
        self.space = AddressSpace(capacity, "device memory")
        self.team = Team([self.space])
        self.target, self.enable_data, self.clock = target, enable_data, clock
        self.records: list[KernelRecord] = []
        self._outer: list[Provider | None] = []

    def touch(self, allocations: list[Allocation]) -> None:
        """Nothing is ever in flight here."""

    def submit(self, record: KernelRecord) -> None:
        self.records.append(record)

    def benchmark(self, fn: Callable[[], Any]) -> float:
        if self.clock is None:
            raise NotImplementedError("this device has no clock: use RuntimeContext, or StandaloneDevice(clock=...)")
        kept, self.records = self.records, []
        try:
            fn()
            return self.clock(self.records)
        finally:
            self.records = kept

    def array(self, values: NDArray[Any], kind: Any = None, name: str = "array") -> DeviceArray:
        """A device copy of ``values``, in ``kind`` where given."""
        made = self.empty(values.shape, values.dtype if kind is None else kind, name)
        made.copy_(values)
        return made

    def empty(self, shape: Sequence[int], kind: Any, name: str = "array") -> DeviceArray:
        """A new array, row-major; its bytes read as zero."""
        kind = dtype(kind)
        allocation = self.space.alloc(int(np.prod(shape, dtype=np.int64)) * kind.itemsize, name)
        if sanitize.tracks_writes():
            allocation.forget()
        strides = [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
        return DeviceArray(allocation, kind, shape, strides)

    def __enter__(self) -> StandaloneDevice:
        self._outer.append(set_provider(lambda: self))
        return self

    def __exit__(self, *_: object) -> None:
        set_provider(self._outer.pop())
