"""Tensors: strided views of host memory or of a SIP's memory, with torch's names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.memory import DType, dtype
from kernbench.runtime_api import copies, host_reads, layout, printing
from kernbench.runtime_api.arithmetic import Arithmetic
from kernbench.runtime_api.convert import cast, is_torch
from kernbench.runtime_api.storage import Storage
from kernbench.runtime_api.types import CPU, DEVICE_TYPE, Device
from kernbench.runtime_api.views import Views
from kernbench.sim_engine.oplog import Access


class Tensor(Arithmetic, Views):
    """A tensor. Made by hand it lives on the host; :class:`RuntimeContext` has the factories of device tensors.

    Args:
        shape: its sizes.
        dtype: anything :func:`kernbench.memory.dtype` understands.
        name: what errors, reports and memory summaries call it.
    """

    dtype: DType
    name: str
    _host: NDArray[Any] | None
    """The array of a host tensor; None for a device tensor, and where a timing-only run has no values."""
    _storage: Storage | None
    """The memory of a device tensor."""

    def __init__(self, shape: Sequence[int], dtype: Any = "f16", name: str = "tensor") -> None:
        self._init(layout.sizes(shape), dtype, name)
        self._host = np.zeros(self._shape, self.dtype.storage)

    def _init(self, shape: layout.Shape, kind: Any, name: str) -> None:
        self._shape, self._strides, self._offset = shape, layout.row_major(shape), 0
        self.dtype, self.name = dtype(kind), name
        self._host = self._storage = None

    @classmethod
    def _of_array(cls, array: NDArray[Any], name: str = "tensor") -> Tensor:
        """A host tensor that shares ``array``'s memory."""
        made = cls.__new__(cls)
        made._init(array.shape, array.dtype, name)
        made._host = array
        return made

    @classmethod
    def _without_values(cls, shape: layout.Shape, kind: Any, name: str = "tensor") -> Tensor:
        """A host tensor of a timing-only run: it has a size, and reading it is an error."""
        made = cls.__new__(cls)
        made._init(shape, kind, name)
        return made

    @classmethod
    def _on(cls, storage: Storage, shape: layout.Shape, kind: DType, name: str) -> Tensor:
        made = cls.__new__(cls)
        made._init(shape, kind, name)
        made._storage = storage
        return made

    # What it is.

    @property
    def shape(self) -> layout.Shape:
        return self._shape

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one size."""
        return self._shape if dim is None else self._shape[dim]

    @property
    def ndim(self) -> int:
        return len(self._shape)

    def dim(self) -> int:
        return len(self._shape)

    def numel(self) -> int:
        return math.prod(self._shape)

    def element_size(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.numel() * self.dtype.itemsize

    def stride(self, dim: int | None = None) -> Any:
        """Strides in elements, or one of them."""
        if self._host is not None:
            strides: layout.Shape = tuple(s // self.dtype.itemsize for s in self._host.strides)
        else:
            strides = self._strides
        return strides if dim is None else strides[dim]

    def storage_offset(self) -> int:
        """Elements between the start of the memory and the first element."""
        return self._offset

    def is_contiguous(self) -> bool:
        return layout.is_contiguous(self._shape, self.stride())

    @property
    def device(self) -> Device:
        if self._storage is None:
            return CPU
        return Device(DEVICE_TYPE, self._storage.sip.number)

    @property
    def is_cpu(self) -> bool:
        return self._storage is None

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def data_ptr(self) -> int:
        """Address of the first element: in the SIP's address space, or in the process for a host tensor.

        Raises:
            RuntimeError: the tensor is on another SIP than the running rank's.
        """
        if self._storage is None:
            return self._need_host().ctypes.data
        copies.driver(self)
        return self._address()

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError("len() of a 0-d tensor")
        return self._shape[0]

    # Reading: every one of these is in host_reads.HOST_READS.

    def numpy(self) -> NDArray[Any]:
        """The values: shared for a host tensor, a copy for a device tensor (bf16 and f8 as ml_dtypes).

        Raises:
            InFlightError: a collective of this rank still works on the tensor.
            ValuesNeeded: a timing-only run did not compute the values.
        """
        if self._storage is None:
            return self._need_host()
        host_reads.need_values(self)
        values = copies.fetch(self)
        assert values is not None
        return values

    def __array__(self, kind: Any = None, copy: bool | None = None) -> NDArray[Any]:
        values = self.numpy()
        return values if kind is None else values.astype(kind)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.numpy().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # values leave through the host's memory

    @property
    def data(self) -> Tensor:
        """The tensor itself, after the barrier."""
        return self.detach()

    def item(self) -> Any:
        """The one value as a Python number.

        Raises:
            RuntimeError: there is not exactly one.
        """
        if self.numel() != 1:
            raise RuntimeError(f"a Tensor with {self.numel()} elements cannot be converted to Scalar")
        return self.tolist() if self.ndim == 0 else self.reshape(()).tolist()

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        values = self.numpy()
        return (values.astype(self.dtype.carrier) if values.dtype.kind == "V" else values).tolist()

    def cpu(self) -> Tensor:
        """A copy on the host; the tensor itself if it is there already."""
        if self._storage is None:
            return self
        values = copies.fetch(self)
        if values is None:
            return Tensor._without_values(self._shape, self.dtype, self.name)
        return Tensor._of_array(values, self.name)

    def __getitem__(self, key: Any) -> Tensor:
        """A view by integers, slices, None and Ellipsis; on the host also by lists, masks and index tensors."""
        keys = key if isinstance(key, tuple) else (key,)
        if not all(k is None or k is Ellipsis or isinstance(k, int | np.integer | slice) for k in keys):
            if self._storage is None:
                return Tensor._of_array(self._need_host()[_plain(keys)], self.name)
            raise NotImplementedError(
                "indexing a device tensor by lists, masks or tensors: use slices, or .cpu() first and index there"
            )
        if self._storage is None:
            values = self._need_host()[keys if Ellipsis in keys else (*keys, Ellipsis)]
            return Tensor._of_array(values, self.name)
        shape, strides, skipped = layout.index(self._shape, self._strides, key)
        return self._view(shape, strides, skipped)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __index__ = __int__

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __repr__(self) -> str:
        where = "" if self._storage is None else f", device='{self.device}'"
        default = self.dtype.name in ("f32", "i64", "i1")
        suffix = where + ("" if default else f", dtype={self.dtype}")
        if not self._has_values():
            return f"tensor(<values not computed>, size={self._shape}{suffix})"
        values = self.numpy()
        return printing.text(values, suffix + (f", size={self._shape}" if values.size == 0 and self.ndim > 1 else ""))

    # Writing.

    def copy_(self, src: Any, non_blocking: bool = False) -> Tensor:
        """Write the values of another tensor, a numpy array, a torch tensor or numbers; stretched and cast to fit.

        From the host the bytes cross the host link, and the host waits for that unless ``non_blocking``.
        """
        copies.copy(self, copies.as_tensor(src), blocking=not non_blocking)
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._storage is None and not isinstance(value, Tensor):
            self._need_host()[_plain(key if isinstance(key, tuple) else (key,))] = value
        elif isinstance(value, int | float | bool):
            self._item_view(key).fill_(value)
        else:
            self._item_view(key).copy_(value)

    def _item_view(self, key: Any) -> Tensor:
        if self._storage is None:
            return self[key]
        shape, strides, skipped = layout.index(self._shape, self._strides, key)
        return self._view(shape, strides, skipped)

    def fill_(self, value: Any) -> Tensor:
        """Write one number everywhere."""
        copies.fill(self, value)
        return self

    def zero_(self) -> Tensor:
        return self.fill_(0)

    # Inside.

    def _empty_like(self, kind: DType) -> Tensor:
        if self._storage is not None:
            return copies.driver(self).ctx.empty(self._shape, dtype=kind, name=self.name)
        if self._host is None:
            return Tensor._without_values(self._shape, kind, self.name)
        return Tensor(self._shape, kind, self.name)

    def _view(self, shape: layout.Shape, strides: layout.Shape, skipped: int) -> Tensor:
        made = Tensor.__new__(Tensor)
        made._init(shape, self.dtype, self.name)
        made._storage, made._strides, made._offset = self._storage, strides, self._offset + skipped
        if self._host is not None:
            made._host = layout.strided(self._host, shape, strides)
        return made

    def _reinterpreted(self, kind: DType) -> Tensor:
        """The same bytes as elements of another type."""
        empty = self._host is not None and not self._host.size  # whose strides are whatever numpy makes them
        strides = layout.row_major(self._shape) if empty else self.stride()
        shape, strides, offset = layout.reinterpret(self._shape, strides, self._offset, self.dtype, kind)
        made = Tensor.__new__(Tensor)
        made._init(shape, kind, self.name)
        made._storage, made._strides, made._offset = self._storage, strides, offset
        if self._host is not None:
            made._host = np.empty(shape, kind.storage) if empty else self._host.view(kind.storage)
        return made

    @property
    def _host_buffer(self) -> NDArray[Any]:
        """The array behind a host tensor."""
        return self._need_host()

    @_host_buffer.setter
    def _host_buffer(self, values: Any) -> None:
        if self._storage is not None:
            raise AttributeError(f"tensor '{self.name}' is on {self.device} and has no host buffer: use copy_")
        array = cast(np.asarray(values), self.dtype)
        if array.shape != self._shape:
            raise ValueError(f"tensor '{self.name}' has shape {self._shape}, the buffer has {array.shape}")
        self._host = array

    def _host_or_none(self) -> NDArray[Any] | None:
        return self._host

    def _need_host(self) -> NDArray[Any]:
        host_reads.need_values(self)
        if self._host is None:
            raise RuntimeError(
                f"tensor '{self.name}' is on {self.device} and has no host buffer: use .numpy() or .cpu()"
            )
        return self._host

    def _set_host(self, values: NDArray[Any] | None, known: bool) -> None:
        """Write a host tensor, or forget its values."""
        if not known or values is None:
            self._host = None
        else:
            if self._host is None:
                self._host = np.empty(self._shape, self.dtype.storage)
            self._host[...] = cast(values, self.dtype)

    def _bytes_view(self, flat: NDArray[Any]) -> NDArray[Any]:
        """This view of an array with one entry per byte of the allocation: its shape, and the bytes of an element."""
        size = self.dtype.itemsize
        strides = (*(s * size for s in self._strides), 1) if flat.strides != (0,) else (0,) * (self.ndim + 1)
        return np.lib.stride_tricks.as_strided(flat[self._offset * size :], (*self._shape, size), strides)

    def _device_view(self) -> NDArray[Any]:
        """The bytes in device memory, seen as values."""
        assert self._storage is not None
        whole = self._storage.allocation.bytes
        flat = whole[: whole.size - whole.size % self.dtype.itemsize].view(self.dtype.storage)
        return layout.strided(flat[self._offset :], self._shape, self._strides)

    def _has_values(self) -> bool:
        """False where a timing-only run has skipped some of its values."""
        if self._storage is None:
            return self._host is not None
        allocation = self._storage.allocation
        if self.is_contiguous():
            start = self._offset * self.dtype.itemsize
            return allocation.is_valid(start, start + self.nbytes)
        return allocation.invalid is None or not self._bytes_view(allocation.invalid).any()

    def _mark(self, valid: bool) -> None:
        """Say whether this view's bytes have been computed."""
        assert self._storage is not None
        allocation = self._storage.allocation
        start = self._offset * self.dtype.itemsize
        if allocation.unwritten is not None:
            if self.is_contiguous() and self.nbytes == allocation.nbytes:
                allocation.unwritten = None
            else:
                self._bytes_view(allocation.unwritten_map())[...] = False
        if self.is_contiguous():
            (allocation.mark_valid if valid else allocation.invalidate)(start, start + self.nbytes)
        elif not valid or allocation.invalid is not None:
            self._bytes_view(allocation.invalidity())[...] = not valid

    def _written(self) -> None:
        """This view's bytes in device memory have been computed."""
        assert self._storage is not None
        self._mark(valid=True)
        self._storage.allocation.wrote()

    def _address(self) -> int:
        assert self._storage is not None
        return self._storage.allocation.base + self._offset * self.dtype.itemsize

    def _range(self) -> tuple[int, int]:
        """Byte addresses between which this view lies."""
        if self.numel() == 0:
            return 0, 0
        reach = sum((n - 1) * s for n, s in zip(self._shape, self._strides, strict=True))
        return self._address(), self._address() + (reach + 1) * self.dtype.itemsize

    def _access(self) -> Access:
        return layout.access(self._address(), self._shape, self._strides, self.dtype.itemsize)


host_reads.install(Tensor)


def _plain(keys: tuple[Any, ...]) -> Any:
    """Index tensors as arrays, for numpy's indexing."""
    arrays = tuple(k.numpy() if isinstance(k, Tensor) or is_torch(k) else k for k in keys)
    return arrays[0] if len(arrays) == 1 else arrays
