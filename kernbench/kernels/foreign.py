"""Host memory as a kernel's argument: torch CPU tensors and numpy arrays.

Each block of host memory (a torch storage, or the array that owns its data) gets a range of simulated memory when a
kernel first names it, and keeps it until the host memory dies, so that launch after launch it lies on the same
channels. The bytes behind that range *are* the host's: a kernel reads and writes the tensor itself, and nothing needs
to be copied in or out. Views of one storage share its range, and so do a tensor and a numpy view of it.

Such a tensor counts as lying on the device: no transfer over the host link is recorded.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np

from kernbench.kernels.device import Device
from kernbench.memory import AddressSpace, Allocation, dtype


class ForeignArgumentError(TypeError):
    """A tensor that no kernel can be given as it is."""


class HostArray:
    """A numpy array as Triton takes a tensor: ``data_ptr()`` and ``dtype``."""

    def __init__(self, array: np.ndarray) -> None:
        if array.dtype not in _taken:
            _check(array.dtype)
        self.array = array
        self.dtype, self.shape = array.dtype, array.shape

    def data_ptr(self) -> int:
        """Address in the host's memory, which decides the alignment that Triton assumes."""
        return self.array.__array_interface__["data"][0]

    # What an autotuner asks for to put memory back between configurations.

    def clone(self) -> HostArray:
        return HostArray(self.array.copy())

    def copy_(self, source: HostArray) -> HostArray:
        self.array[...] = source.array
        return self

    def zero_(self) -> HostArray:
        self.array[...] = 0
        return self


NUMPY = (np.ndarray, np.generic)


def of_numpy(value: Any) -> Any:
    """A numpy array or number as Triton takes it."""
    return HostArray(value) if isinstance(value, np.ndarray) else value.item()


_taken: set[np.dtype] = set()
"""Types of arrays that were found to be ours."""


def _check(kind: np.dtype) -> None:
    try:
        dtype(kind)
    except TypeError as error:
        raise ForeignArgumentError(f"a numpy array of {kind} is an argument: {error}; convert it with astype") from None
    if not kind.isnative:
        raise ForeignArgumentError(
            f"a numpy array of {kind} is an argument: its bytes are in the other order; use "
            f"array.astype({kind.newbyteorder('=').name!r})"
        )
    _taken.add(kind)


class _Bytes:
    """Offers host memory to numpy without owning it; whoever owns it takes the mirror away when it dies."""

    def __init__(self, start: int, nbytes: int) -> None:
        self.__array_interface__ = {"data": (start, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}


class _Mirror:
    """One range of host memory and the allocation that stands for it."""

    def __init__(self, start: int, end: int, owners: list[Any], allocation: Allocation) -> None:
        self.start, self.end = start, end
        self.owners = owners
        """Weak references, which take the mirror away when their object dies."""
        self.allocation = allocation


class Mirrors:
    """The host memory that kernels on one address space have named, in disjoint ranges."""

    def __init__(self, space: AddressSpace) -> None:
        self._space = ref(space)
        self._starts: list[int] = []
        self._by_start: dict[int, _Mirror] = {}

    def cover(self, owner: Any, start: int, nbytes: int, name: str, device: Device) -> None:
        """See that host bytes ``[start, start + nbytes)``, which die with ``owner``, have an allocation."""
        end = start + nbytes
        found = self.find(start)
        if found is not None and end <= found.end:
            return
        owners, overlapping = [owner], self._overlapping(start, end)
        for other in overlapping:
            start, end = min(start, other.start), max(end, other.end)
            owners += [alive for alive in (o() for o in other.owners) if alive is not None and alive is not owner]
            self._drop(other.start)
        allocation = device.space.alloc(end - start, name, stream=device.stream)
        allocation._bytes = np.asarray(_Bytes(start, end - start))
        references = [ref(o, lambda _, at=start: self._drop(at)) for o in owners]  # type: ignore[misc]
        self._by_start[start] = _Mirror(start, end, references, allocation)
        self._starts.insert(bisect_right(self._starts, start), start)

    def find(self, address: int) -> _Mirror | None:
        """The mirror of a host address."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        found = self._by_start[self._starts[at]]
        return found if address < max(found.end, found.start + 1) else None

    def _overlapping(self, start: int, end: int) -> list[_Mirror]:
        first = max(bisect_right(self._starts, start) - 1, 0)
        near = [self._by_start[at] for at in self._starts[first : bisect_left(self._starts, end)]]
        found = [m for m in near if start < max(m.end, m.start + 1)]
        if len(found) > 1:  # the oldest first, wherever the host happens to have put them
            found = [m for m in self._by_start.values() if m in found]
        return found

    def _drop(self, start: int) -> None:
        mirror = self._by_start.pop(start, None)
        if mirror is None:
            return
        self._starts.remove(start)
        space = self._space()
        if space is not None:
            space.free(mirror.allocation)


_mirrors: WeakKeyDictionary[AddressSpace, Mirrors] = WeakKeyDictionary()
_exposed: WeakSet[Any] = WeakSet()


def expose(tensor: Any) -> None:
    """Say that the program has asked for the address of a torch tensor: it may reach a kernel without the tensor, from
    an object that is none, as a number, or in a table of addresses."""
    _exposed.add(_memory(tensor, "data_ptr()")[0])


def _mirrors_of(device: Device) -> Mirrors:
    mirrors = _mirrors.get(device.space)
    if mirrors is None:
        mirrors = _mirrors[device.space] = Mirrors(device.space)
        holder = ref(device)
        device.space.alias = lambda address: None if (alive := holder()) is None else device_address(address, alive)
    return mirrors


def device_address(address: int, device: Device) -> int | None:
    """The simulated address of a byte of host memory that kernels have named, or that :func:`expose` was told of; None
    where it is neither's."""
    mirrors = _mirrors_of(device)
    mirror = mirrors.find(address)
    if mirror is None:
        for storage in list(_exposed):
            start, nbytes = storage.data_ptr(), storage.nbytes()
            if start <= address < start + max(nbytes, 1):
                mirrors.cover(storage, start, nbytes, "tensor", device)
                mirror = mirrors.find(address)
                break
        else:
            return None
    assert mirror is not None
    mirror.allocation.wrote()  # the host may have written since the last launch, unseen
    return mirror.allocation.base + address - mirror.start


def is_foreign(arg: Any) -> bool:
    """Whether an argument lies in the host's memory."""
    if isinstance(arg, HostArray | np.ndarray):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(arg, getattr(torch, "Tensor", ()))


def place(args: Sequence[Any], names: Sequence[str], written: Sequence[int], device: Device, kernel: str) -> list[Any]:
    """The arguments of a launch with host tensors replaced by device addresses.

    Args:
        args: all arguments; those in the host's memory are looked at.
        names: their names.
        written: positions of those the kernel may write.

    Raises:
        ForeignArgumentError: a tensor whose memory is not plain host memory, or a read-only array that is written.
        NotImplementedError: the device computes no values.
    """
    foreign = [i for i, arg in enumerate(args) if is_foreign(arg)]
    if not device.enable_data:
        raise NotImplementedError(
            f"kernel '{kernel}': without values (enable_data=False) a torch tensor or numpy array could not tell that "
            "its contents were skipped: use ctx tensors (ctx.zeros, copy_), or enable_data=True"
        )
    mirrors = _mirrors_of(device)
    placed, where = list(args), {}
    for i in foreign:
        what = f"kernel '{kernel}', argument '{names[i]}'"
        owner, start, nbytes, address, writable = _memory(args[i], what)
        if i in written and not writable:
            raise ForeignArgumentError(f"{what}: the kernel writes it, but the array is read-only; pass a copy")
        mirrors.cover(owner, start, nbytes, names[i], device)
        where[i] = address
    for i, address in where.items():  # an argument may have joined the range of one before it
        mirror = mirrors.find(address)
        assert mirror is not None
        mirror.allocation.wrote()  # the host may have written since the last launch, unseen
        placed[i] = mirror.allocation.base + address - mirror.start
    return placed


def _memory(arg: Any, what: str) -> tuple[Any, int, int, int, bool]:
    """(owner, first byte, bytes, address of the first element, whether it may be written). What has no elements is at
    address 0, a part of a larger tensor too: none of that tensor's elements are its own."""
    if isinstance(arg, HostArray):
        arg = arg.array
    if isinstance(arg, np.ndarray):
        root = arg
        while isinstance(root.base, np.ndarray):
            root = root.base
        if not arg.size:
            return root, 0, 0, 0, arg.flags.writeable
        first = root.__array_interface__["data"][0]
        return root, first, root.nbytes, arg.__array_interface__["data"][0], arg.flags.writeable
    # The C++ accessors, whatever stands in front of torch's functions.
    import torch

    with torch._C.DisableTorchFunction():
        if arg.device.type != "cpu" or arg.layout != torch.strided:
            raise ForeignArgumentError(
                f"{what}: expected a strided tensor in the host's memory or a ctx tensor, got a {arg.layout} tensor on "
                f"'{arg.device}'; use .cpu() or .to_dense() first"
            )
        storage = arg.untyped_storage()
        if not arg.numel():
            return storage, 0, 0, 0, True
        return storage, storage.data_ptr(), storage.nbytes(), arg.data_ptr(), True
