"""Views and copies of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernbench.memory import DType
from kernbench.memory import dtype as to_dtype
from kernbench.memory.dtype import is_dtype
from kernbench.runtime_api import copies, layout
from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.types import CPU, DEVICE_TYPE, Device

if TYPE_CHECKING:
    from kernbench.runtime_api.tensor import Tensor


class Views:
    """Mixed into Tensor."""

    def view(self: Any, *shape: Any, dtype: Any = None) -> Tensor:
        """The same memory in another shape, or, with a dtype (as only argument or by name), its bytes as another type.

        Elements of another size change the last axis: ``(4, 6)`` of f16 are ``(4, 12)`` of u8 and ``(4, 3)`` of f32.

        Raises:
            RuntimeError: strides do not allow it, use reshape; or the last axis, offset or strides do not divide into
                elements of the new size.
        """
        if dtype is not None or (len(shape) == 1 and is_dtype(shape[0])):
            return self._reinterpreted(to_dtype(shape[0] if dtype is None else dtype))
        new, strides = layout.reshape(self._shape, self.stride(), layout.sizes(*shape))
        if strides is None:
            raise RuntimeError("view size is not compatible with input tensor's size and stride: use .reshape(...)")
        return self._view(new, strides, 0)

    def reshape(self: Any, *shape: Any) -> Tensor:
        """A view where strides allow it, else a copy."""
        new, strides = layout.reshape(self._shape, self.stride(), layout.sizes(*shape))
        return self.contiguous().view(new) if strides is None else self._view(new, strides, 0)

    def flatten(self: Any) -> Tensor:
        return self.reshape(-1)

    def unsqueeze(self: Any, dim: int) -> Tensor:
        at = dim + self.ndim + 1 if dim < 0 else dim
        return self.view(*self._shape[:at], 1, *self._shape[at:])

    def squeeze(self: Any, dim: int | None = None) -> Tensor:
        drop = [i for i, n in enumerate(self._shape) if n == 1 and (dim is None or i == dim % self.ndim)]
        keep = [i for i in range(self.ndim) if i not in drop]
        return self._view(tuple(self._shape[i] for i in keep), tuple(self.stride(i) for i in keep), 0)

    def permute(self: Any, *dims: Any) -> Tensor:
        order = [d % self.ndim for d in layout.sizes(*dims)]
        if sorted(order) != list(range(self.ndim)):
            raise RuntimeError(f"permute{tuple(order)}: expected each of the {self.ndim} dimensions once")
        return self._view(tuple(self._shape[i] for i in order), tuple(self.stride(i) for i in order), 0)

    def transpose(self: Any, dim0: int, dim1: int) -> Tensor:
        order = list(range(self.ndim))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(order)

    def t(self: Any) -> Tensor:
        """The transpose of a matrix (or a vector itself)."""
        if self.ndim > 2:
            raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {self.ndim}D")
        return self.T

    @property
    def T(self: Any) -> Tensor:
        return self.permute(*reversed(range(self.ndim))) if self.ndim else self

    def expand(self: Any, *shape: Any) -> Tensor:
        """A view in which axes of length 1 repeat."""
        new = layout.sizes(*shape)
        lead = len(new) - self.ndim
        new = tuple(self._shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(new))
        return self._view(new, layout.expand(self._shape, self.stride(), new), 0)

    def narrow(self: Any, dim: int, start: int, length: int) -> Tensor:
        """``length`` elements of one axis from ``start`` on, as a view."""
        key: list[slice] = [slice(None)] * self.ndim
        key[dim] = slice(start, start + length)
        return self._item_view(tuple(key))

    def split(self: Any, size: int, dim: int = 0) -> tuple[Tensor, ...]:
        """Views of ``size`` elements of one axis each; the last may be shorter."""
        return tuple(self.narrow(dim, at, min(size, self._shape[dim] - at)) for at in range(0, self._shape[dim], size))

    def chunk(self: Any, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        return self.split(max(1, -(-self._shape[dim] // chunks)), dim)

    def contiguous(self: Any) -> Tensor:
        """The tensor itself if it is row-major without gaps, else such a copy."""
        return self if self.is_contiguous() else self.clone()

    def clone(self: Any) -> Tensor:
        made = self._empty_like(self.dtype)
        copies.copy(made, self, blocking=False)
        return made

    def detach(self: Any) -> Tensor:
        return self._view(self._shape, self.stride(), 0)

    def to(self: Any, *args: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False) -> Tensor:
        """On another device, or of another dtype; the tensor itself where nothing changes."""
        for arg in args:
            if hasattr(arg, "storage_offset"):
                device, dtype = arg.device, arg.dtype
            elif isinstance(arg, Device | int) or str(arg).partition(":")[0] in ("cpu", DEVICE_TYPE):
                device = arg
            else:
                dtype = arg
        return self._to(device, self.dtype if dtype is None else to_dtype(dtype), non_blocking)

    def _to(self: Any, device: Any, kind: DType, non_blocking: bool) -> Tensor:
        here = self.device
        there = here if device is None else Device.parse(device, ranks.current().device)
        if there == here:
            if kind == self.dtype:
                return self
            made = self._empty_like(kind)
            copies.copy(made, self, blocking=False)
            return made
        if there == CPU:
            return self.cpu()._to(None, kind, False)
        if there.index != ranks.current().device:
            raise RuntimeError(
                f"to('{there}'): this rank's current device is ahbm:{ranks.current().device}; set_device first"
            )
        made = ranks.current().ctx.empty(self._shape, dtype=kind, name=self.name)
        copies.copy(made, self, blocking=not non_blocking)
        return made

    def type(self: Any, kind: Any) -> Tensor:
        return self.to(dtype=kind)

    def float(self: Any) -> Tensor:
        return self.to(dtype="f32")

    def half(self: Any) -> Tensor:
        return self.to(dtype="f16")
