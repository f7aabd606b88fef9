"""Making tensors: on the device unless ``device="cpu"`` says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernbench.memory import INTERLEAVED, DType, Placement, dtype
from kernbench.runtime_api import copies, layout
from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.convert import to_numpy
from kernbench.runtime_api.storage import Storage
from kernbench.runtime_api.tensor import Tensor
from kernbench.runtime_api.types import CPU, Device
from kernbench.runtime_api.where import user_line

if TYPE_CHECKING:
    from kernbench.policy.placement.dp import DPPolicy

DEFAULT = "f16"


class Factories:
    """Mixed into RuntimeContext. Arguments common to all of them:

    shape: a sequence, after which dtype, dp and name may follow without their names; or sizes one by one.
    dtype: anything :func:`kernbench.memory.dtype` understands; f16 where nothing else is said.
    dp: how a device tensor spreads over cubes and PEs (:class:`kernbench.policy.placement.dp.DPPolicy`); it changes
        what an access costs, never a value. None interleaves it over all channels.
    name: what errors, reports and memory summaries call it.
    device: ``"cpu"`` for a host tensor.

    Raises (all of them): OutOfMemoryError, whose message says who holds what.
    """

    enable_data: bool

    def empty(
        self, *shape: Any, dtype: Any = DEFAULT, dp: DPPolicy | None = None, name: str = "", device: Any = None
    ) -> Tensor:
        """Memory that nothing has written. It reads as zeros."""
        sizes, dtype, dp, name = _arguments(shape, dtype, dp, name)
        return self._new(sizes, dtype, name, dp, device)

    def zeros(
        self, *shape: Any, dtype: Any = DEFAULT, dp: DPPolicy | None = None, name: str = "", device: Any = None
    ) -> Tensor:
        sizes, dtype, dp, name = _arguments(shape, dtype, dp, name)
        return self.full(sizes, 0, dtype, dp, name, device)

    def ones(
        self, *shape: Any, dtype: Any = DEFAULT, dp: DPPolicy | None = None, name: str = "", device: Any = None
    ) -> Tensor:
        sizes, dtype, dp, name = _arguments(shape, dtype, dp, name)
        return self.full(sizes, 1, dtype, dp, name, device)

    def full(
        self,
        shape: Any,
        value: Any,
        dtype: Any = DEFAULT,
        dp: DPPolicy | None = None,
        name: str = "",
        device: Any = None,
    ) -> Tensor:
        made = self._new(layout.sizes(shape), dtype, name, dp, device)
        copies.fill(made, value)
        return made

    def arange(self, start: Any, end: Any = None, step: Any = 1, *, dtype: Any = None, **kwargs: Any) -> Tensor:
        """``start`` (0) to ``end``, ``end`` left out: i64 of integers, f32 of floats."""
        if end is None:
            start, end = 0, start
        values = np.arange(start, end, step)
        kind = dtype or ("i64" if values.dtype.kind in "iu" else "f32")
        made = self._new(values.shape, kind, kwargs.get("name", ""), kwargs.get("dp"), kwargs.get("device"))
        copies.fill(made, values, "arange", op="arange")
        return made

    def tensor(
        self, data: Any, dtype: Any = None, dp: DPPolicy | None = None, name: str = "", device: Any = None
    ) -> Tensor:
        """A copy of numbers, lists, a numpy array or a torch tensor; of a device tensor, a copy there."""
        source = data if isinstance(data, Tensor) else Tensor._of_array(to_numpy(data))
        made = self._new(source.shape, source.dtype if dtype is None else dtype, name, dp, device)
        return made.copy_(source)

    as_tensor = tensor

    def from_numpy(self, array: NDArray[Any]) -> Tensor:
        """A host tensor that shares the array's memory."""
        if any(stride < 0 for stride in array.strides):
            raise ValueError("from_numpy: the array has negative strides; copy it first")
        return Tensor._of_array(to_numpy(array))

    def host_empty(self, *shape: Any, dtype: Any = DEFAULT, name: str = "tensor") -> Tensor:
        """A host tensor; in a timing-only run one that has a size and no memory."""
        sizes, dtype, _, name = _arguments(shape, dtype, None, name)
        if self.enable_data:
            return Tensor(sizes, dtype, name)
        return Tensor._without_values(sizes, dtype, name)

    def rand(self, *shape: Any, dtype: Any = DEFAULT, **kwargs: Any) -> Tensor:
        """Uniform in [0, 1), from the rank's own generator."""
        return self._random(shape, dtype, kwargs, lambda rng, n: rng.random(n, np.float32))

    def randn(self, *shape: Any, dtype: Any = DEFAULT, **kwargs: Any) -> Tensor:
        """Normal with mean 0 and variance 1."""
        return self._random(shape, dtype, kwargs, lambda rng, n: rng.standard_normal(n, np.float32))

    def randint(self, low: int, high: int | None, shape: Any, *, dtype: Any = "i64", **kwargs: Any) -> Tensor:
        """Integers from ``low`` up to, not including, ``high``."""
        if high is None:
            low, high = 0, low
        return self._random((shape,), dtype, kwargs, lambda rng, n: rng.integers(low, high, n))

    def empty_like(self, other: Tensor, dtype: Any = None, **kwargs: Any) -> Tensor:
        return self._new(other.shape, dtype or other.dtype, kwargs.get("name", ""), kwargs.get("dp"), self._same(other))

    def zeros_like(self, other: Tensor, dtype: Any = None, **kwargs: Any) -> Tensor:
        return self.full_like(other, 0, dtype, **kwargs)

    def ones_like(self, other: Tensor, dtype: Any = None, **kwargs: Any) -> Tensor:
        return self.full_like(other, 1, dtype, **kwargs)

    def full_like(self, other: Tensor, value: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
        made = self.empty_like(other, dtype, **kwargs)
        copies.fill(made, value)
        return made

    def rand_like(self, other: Tensor, dtype: Any = None) -> Tensor:
        return self.rand(other.shape, dtype=dtype or other.dtype, device=self._same(other))

    def randn_like(self, other: Tensor, dtype: Any = None) -> Tensor:
        return self.randn(other.shape, dtype=dtype or other.dtype, device=self._same(other))

    def manual_seed(self, seed: int) -> None:
        """Seed the calling rank's generator. Ranks that use one seed draw the same numbers."""
        rank = ranks.current_in(self)  # type: ignore[arg-type]
        rank.rng = rank.seeded(seed)

    # Inside.

    def _same(self, other: Tensor) -> Device | None:
        return CPU if other.is_cpu else None

    def _random(self, shape: Any, dtype_: Any, kwargs: dict[str, Any], draw: Any) -> Tensor:
        made = self._new(layout.sizes(*shape), dtype_, kwargs.get("name", ""), kwargs.get("dp"), kwargs.get("device"))
        rng = ranks.current_in(self).rng  # type: ignore[arg-type]
        skip = not self.enable_data and made.is_floating_point() and not made.is_cpu
        copies.fill(made, None if skip else draw(rng, made.shape), "random", op="rand")
        return made

    def _new(self, shape: layout.Shape, kind: Any, name: str, dp: DPPolicy | None = None, device: Any = None) -> Tensor:
        rank = ranks.current_in(self)  # type: ignore[arg-type]
        kind = _dtype(kind)
        if not name:
            where = user_line()
            name = f"tensor made at {Path(where.file).name}:{where.line}"
        if device is not None:
            parsed = Device.parse(device, rank.device)
            if parsed == CPU:
                return Tensor(shape, kind, name)
            if parsed.index != rank.device:
                raise RuntimeError(
                    f"device '{parsed}': this rank's current device is ahbm:{rank.device}; set_device first"
                )
        rank.breathe()
        nbytes = layout.elements(shape) * kind.itemsize
        storage = Storage(rank.sip, nbytes, name, self._placement(shape, kind, dp))
        return Tensor._on(storage, shape, kind, name)

    def _placement(self, shape: layout.Shape, kind: DType, dp: DPPolicy | None) -> Placement:
        if dp is None:
            return INTERLEAVED
        return dp.placement(shape, kind.itemsize, **self._sip_shape)  # type: ignore[attr-defined]


_dtype = dtype


def _arguments(given: tuple[Any, ...], kind: Any, dp: Any, name: str) -> tuple[layout.Shape, Any, Any, str]:
    """(shape, dtype, dp, name) of ``zeros(shape, dtype, dp, name)`` and of ``zeros(2, 3, dtype=...)``."""
    if len(given) > 1 and isinstance(given[0], Sequence):
        rest = (*given[1:], *(kind, dp, name)[len(given) - 1 :])
        return layout.sizes(given[0]), *rest
    return layout.sizes(*given), kind, dp, name
