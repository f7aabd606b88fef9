"""``device="cuda"`` on a torch without CUDA: tensors live in host memory and say that they are on the GPU.

Every tensor counts as a GPU's, except those that the program itself made on ``cpu`` or brought there, and what torch
computes from such tensors alone. Only what it made on the GPU, brought there, or computed from such tensors alone is
the GPU's for sure; moving anything else there makes a copy.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
import torch.autograd.graph
import torch.serialization
from torch.library import Library
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext, _device_constructors

from kernbench.kernels import foreign
from kernbench.triton import legacy
from kernbench.triton.patches import patched

_CUDA = re.compile(r"cuda(:\d+)?")
_CPU = torch.device("cpu")


class CudaOnCpu(TorchFunctionMode):
    """Turns the device ``cuda`` of every torch call into ``cpu``, and ``cpu`` back where a program asks for it."""

    def __init__(self, around: CudaOnCpu | None = None) -> None:
        """``around``: the mode that this one is begun in. Both know of the same tensors."""
        super().__init__()
        self._on_host: WeakSet[Any] = WeakSet() if around is None else around._on_host
        """Storages that the program brought to, or made on, the CPU."""
        self._on_device: WeakSet[Any] = WeakSet() if around is None else around._on_device
        """Storages that are the program's own device memory already, so that ``.cuda()`` need not copy."""
        self._pinned: WeakSet[Any] = WeakSet() if around is None else around._pinned
        """Those of the first kind that the program asked to be page-locked."""
        self.active = True
        """False once impersonation has ended: where a program has left a mode of its own on, torch takes that off
        instead of this one."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        inner_did = len(_going_on) > 1 and self._is_around()  # it comes first
        if inner_did or not self.active:
            return func(*args, **kwargs)
        answer = _ABOUT_DEVICE.get(func)
        if answer is not None:
            return answer(self, args[0])
        if func is torch.Tensor.type:
            return self._type(*args, **kwargs)
        if func is torch.Tensor.pin_memory:
            return func(*args, **kwargs)  # see installed()
        if func is torch.Tensor.data_ptr:
            if args[0].layout == torch.strided and args[0].device == _CPU:
                foreign.expose(args[0])
            return func(*args)
        if func in _MOVES:
            return self._move(func, args, kwargs)
        if kwargs.get("out_dtype") is not None and func in _PRODUCTS:
            return _in_dtype(func, args, dict(kwargs))
        if func in _HISTOGRAMS and not args[0].is_floating_point():
            return func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype)  # the CPU has it for floats only
        if func in _NORMS and args[0].dtype in _HALVES and not self.is_on_host(args[0]):
            # A CUDA autocast has a rule of its own for norms.
            return func(*args, **kwargs) if torch.is_autocast_enabled("cuda") else _in_float(func, args, kwargs)
        wanted = _device(kwargs.get("device"))
        if kwargs.get("pin_memory"):
            made = func(*args, **(kwargs | {"device": _CPU, "pin_memory": False}))
            return self._pin(made)
        if wanted is None:
            made = func(*args, **kwargs)
            results = [] if isinstance(made, torch.Size) else _tensors(made)
            if results and (self._on_host or self._on_device):
                places = {self._place(tensor) for tensor in _tensors((args, kwargs))}
                if len(places) == 1 and (place := places.pop()) is not None:
                    for tensor in results:
                        self._mark(tensor, place)
            return made
        made = func(*args, **(kwargs | {"device": _CPU}))
        return self._mark(made, wanted) if isinstance(made, torch.Tensor) else made

    @contextmanager
    def once(self) -> Iterator[None]:
        """The mode where torch has taken it off, nothing where it is on: the second of two would see only ``cpu``."""
        in_thread = InThread.is_on() and not InThread.gives_way()
        if in_thread or any(mode is self for mode in _get_current_function_mode_stack()):
            yield
        else:
            with self:
                yield

    def _is_around(self) -> bool:
        """Whether the thread has begun another impersonation within this one."""
        here = threading.get_ident()
        return next((mode for mode, thread in reversed(_going_on) if thread == here), self) is not self

    def is_on_host(self, tensor: torch.Tensor) -> bool:
        """Whether the program knows a tensor to be on the CPU."""
        return self._place(tensor) == "cpu"

    def is_placed(self, tensor: torch.Tensor) -> bool:
        """Whether the program said where a tensor is."""
        return self._place(tensor) is not None

    def _place(self, tensor: torch.Tensor) -> str | None:
        """Where the program knows a tensor to be: ``cpu``, ``cuda``, or None where it did not say."""
        storage = _storage(tensor)
        if storage is None:
            return None
        return "cpu" if self._on_host and storage in self._on_host else "cuda" if storage in self._on_device else None

    def _move(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """``to``, ``cuda`` and ``cpu``: a new tensor wherever a GPU would have made one, since either may be written
        later."""
        tensor = args[0]
        wanted: str | None
        place = self._place(tensor)
        if func is torch.Tensor.to:
            target = kwargs["device"] if "device" in kwargs else args[1] if len(args) > 1 else None
            if isinstance(target, torch.Tensor):
                wanted = "cpu" if self.is_on_host(target) else "cuda"
            else:
                wanted = _device(target)
                if wanted is not None and "device" in kwargs:
                    kwargs = kwargs | {"device": _CPU}
                elif wanted is not None:
                    args = (tensor, _CPU, *args[2:])
            made = tensor.to(*args[1:], **kwargs)
        else:
            wanted = "cpu" if func is torch.Tensor.cpu else "cuda"
            made = tensor.contiguous(**kwargs) if kwargs.get("memory_format") else tensor
        if wanted is None:
            return made if place is None else self._mark(made, place)
        at_home = self._on_host if wanted == "cpu" else self._on_device
        if made is tensor and _storage(tensor) not in at_home:
            made = tensor.clone()
        return self._mark(made, wanted)

    def _type(self, tensor: torch.Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
        """``tensor.type()`` and ``tensor.type("torch.cuda.HalfTensor")``."""
        if dtype is None:
            name = None if self.is_on_host(tensor) else legacy.type_of(tensor)
            return tensor.type() if name is None else name
        on_gpu = legacy.dtype_of(dtype)
        if on_gpu is None:
            return tensor.type(dtype)
        return self._move(torch.Tensor.to, (tensor, torch.device("cuda"), on_gpu), {})

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """A page-locked copy."""
        return self._pin(tensor.clone())

    def _pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self._mark(tensor, "cpu")
        self._pinned.add(_storage(tensor))
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return bool(self._pinned) and _storage(tensor) in self._pinned

    def _mark(self, tensor: torch.Tensor, wanted: str) -> torch.Tensor:
        at_home = self._on_host if wanted == "cpu" else self._on_device
        for part in _parts(tensor):
            storage = _storage(part)
            if storage is not None and storage not in at_home and part.device == _CPU:
                at_home.add(storage)
        return tensor


class InThread(TorchFunctionMode):
    """In a thread that did not begin an impersonation itself: the mode of the one that began last, if any goes on."""

    @staticmethod
    def is_on() -> bool:
        return any(isinstance(mode, InThread) for mode in _get_current_function_mode_stack())

    @staticmethod
    def gives_way() -> bool:
        """Whether there is nothing to do, or the thread has the mode itself."""
        return not _going_on or _going_on[-1][1] == threading.get_ident()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.gives_way():
            return func(*args, **(kwargs or {}))
        return _going_on[-1][0].__torch_function__(func, types, args, kwargs)


_going_on: list[tuple[CudaOnCpu, int]] = []
"""Modes and the threads that began them, the latest last."""


def latest() -> CudaOnCpu | None:
    """The mode of the impersonation that began last of those that go on."""
    return _going_on[-1][0] if _going_on else None


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that one of a program's own class is made of; itself where it has memory."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """A tensor's memory, None where it has none of its own: sparse, or standing for others within ``torch.func``."""
    if hasattr(tensor, "__tensor_flatten__"):
        tensor = next(iter(_parts(tensor)), tensor)
    if tensor.layout != torch.strided:
        return None
    try:
        return tensor.untyped_storage()
    except RuntimeError:
        return None


def _tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors in nested tuples, lists and dictionaries, in any order."""
    found, left = [], [tree]
    while left:
        item = left.pop()
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, tuple | list):
            left += item
        elif isinstance(item, dict):
            left += item.values()
    return found


def _device(spec: Any) -> str | None:
    """``cuda`` or ``cpu`` where ``spec`` names such a device, else None."""
    if isinstance(spec, torch.device):
        return spec.type if spec.type in ("cuda", "cpu") else None
    if isinstance(spec, str):
        return "cuda" if _CUDA.fullmatch(spec) else "cpu" if spec == "cpu" else None
    return "cuda" if isinstance(spec, int) and not isinstance(spec, bool) else None


def _in_dtype(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    """A product with ``out_dtype``, which torch has for GPUs only: accumulated, and left, in that type."""
    kind, out = kwargs.pop("out_dtype"), kwargs.pop("out", None)
    product = func(*(a.to(kind) if isinstance(a, torch.Tensor) else a for a in args), **kwargs)
    return product if out is None else out.copy_(product)


def _in_float(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    """A norm in half precision with its sums in float32, as on a GPU: the CPU's backward pass rounds each of them."""

    def wide(x: Any) -> Any:
        return x.float() if isinstance(x, torch.Tensor) and x.dtype in _HALVES else x

    return func(*map(wide, args), **{name: wide(x) for name, x in kwargs.items()}).to(args[0].dtype)


def _its_device(mode: CudaOnCpu, tensor: torch.Tensor) -> torch.device:
    device = tensor.device
    return torch.device("cuda", 0) if device == _CPU and not mode.is_on_host(tensor) else device


def _getter(name: str) -> Any:
    """What torch calls when an attribute of a tensor is read."""
    return getattr(torch.Tensor, name).__get__


_ABOUT_DEVICE: dict[Any, Callable[[CudaOnCpu, Any], Any]] = {
    _getter("device"): _its_device,
    _getter("is_cuda"): lambda mode, tensor: _its_device(mode, tensor).type == "cuda",
    _getter("is_cpu"): lambda mode, tensor: _its_device(mode, tensor).type == "cpu",
    torch.Tensor.get_device: lambda mode, tensor: 0 if _its_device(mode, tensor).type == "cuda" else -1,
}
_PRODUCTS = frozenset({torch.mm, torch.bmm, torch.addmm, torch.baddbmm})
_HISTOGRAMS = frozenset({torch.histc, torch.Tensor.histc})
_NORMS = frozenset({torch.nn.functional.layer_norm, torch.nn.functional.group_norm})
_HALVES = frozenset({torch.float16, torch.bfloat16})
_MOVES = frozenset({torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu})


def _uncompiled(model: Any = None, **_: Any) -> Any:
    """In the place of ``torch.compile``: the function itself, since torch's own operators take no simulated time."""
    return model if model is not None else lambda fn: fn


@contextmanager
def installed() -> Iterator[CudaOnCpu]:
    """The mode, also in the backward functions that autograd calls."""
    mode = CudaOnCpu(latest())
    run = torch.autograd.graph._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        # torch takes the mode off while it handles Tensor.backward: what users wrote runs in there.
        with mode.once():
            return run(*args, **kwargs)

    as_default = DeviceContext.__torch_function__

    def by_default(self: DeviceContext, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # torch calls this mode of its own, of ``with torch.device(...)``, after ours.
        if self.device.type == "cuda":
            return func(*args, **(kwargs or {}))
        made = as_default(self, func, types, args, kwargs)
        asked = (kwargs or {}).get("device") is not None  # by the mode, which knows better where that is
        if self.device == _CPU and not asked and func in _device_constructors() and isinstance(made, torch.Tensor):
            mode._mark(made, "cpu")
        return made

    changes: list[tuple[Any, str, Any]] = [
        (module, "_engine_run_backward", backward) for module in (torch.autograd.graph, torch.autograd)
    ]
    changes += [(DeviceContext, "__torch_function__", by_default), (torch, "compile", _uncompiled)]
    restore = torch.serialization.default_restore_location

    def restored(storage: Any, location: str) -> Any:
        # What was saved from a GPU, or is to be loaded to one, lies in host memory here.
        return storage if location.startswith("cuda") else restore(storage, location)

    changes.append((torch.serialization, "default_restore_location", restored))
    # Host memory lives as long as its tensor. (torch looks at the arguments' types before it asks a mode.)
    changes.append((torch.Tensor, "record_stream", lambda tensor, stream: None))
    changes.append((torch.Tensor, "_make_wrapper_subclass", staticmethod(_wrapper_on_cpu)))
    page_locked = Library(
        "aten", "IMPL"
    )  # tensors of a program's own class ask for their parts, behind the mode's back
    with warnings.catch_warnings():  # torch's kernel gives way on purpose
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        page_locked.impl("_pin_memory", lambda tensor, device=None: mode.pinned(tensor), "CPU")
        page_locked.impl("is_pinned", lambda tensor, device=None: mode.is_pinned(tensor), "CPU")
    begun = mode, threading.get_ident()
    _going_on.append(begun)
    try:
        with _default_device_kept(), patched(changes), mode:
            yield mode
    finally:
        _going_on.remove(begun)
        mode.active = False
        page_locked._destroy()


@contextmanager
def _default_device_kept() -> Iterator[None]:
    """Take back a default device ``cuda`` that was set meanwhile: there is none afterwards."""
    before = _default_device()
    try:
        yield
    finally:
        now = _default_device()
        if now != before and now is not None and now.type == "cuda":
            torch.set_default_device(before)


def _default_device() -> torch.device | None:
    return getattr(getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None), "device", None)


def _wrapper_on_cpu(cls: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """torch's way to make a tensor of a program's own class, which holds others: to the dispatcher it is the CPU's."""
    if _device(kwargs.get("device")) == "cuda":
        kwargs["device"] = _CPU
    return _make_wrapper_subclass(cls, *args, **kwargs)


_make_wrapper_subclass = torch.Tensor._make_wrapper_subclass
