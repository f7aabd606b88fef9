"""``torch.autocast("cuda")``, whose casts torch's CPU operators are to do.

A CUDA autocast enters one for the CPU too. The two differ in which operators cast, so those that have a rule on CUDA
only get it, under a CUDA autocast: torch's dispatcher knows which these are, and the lists below name those that do not
simply compute in float32. What has a rule on the CPU only keeps it: float32, the CPU having no half precision there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.amp.autocast_mode import autocast
from torch.library import Library

from kernbench.triton.patches import patched

_CPU_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

_LOWER = frozenset(
    (
        *("_convolution", "convolution", "cudnn_convolution", "cudnn_convolution_transpose"),
        *("_thnn_fused_gru_cell", "_thnn_fused_lstm_cell", "gru_cell", "lstm_cell", "rnn_relu_cell", "rnn_tanh_cell"),
        *("addmv", "addr", "chain_matmul", "einsum", "linalg_multi_dot", "mv", "_scaled_dot_product_flash_attention"),
    )
)
"""Computed in the autocast's type."""
_WIDEST = frozenset(
    ("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "index_put", "scatter_add", "tensordot", "vdot")
)
"""Computed in the widest type of their arguments."""
_TO_FLOAT = frozenset(
    ("cumprod", "cumsum", "linalg_matrix_norm", "linalg_vector_norm", "log_softmax", "softmax", "sum")
)
"""Those with a ``dtype``, which is float32 unless the program says otherwise."""

Rule = Callable[[Any, tuple, dict], Any]


@contextmanager
def installed() -> Iterator[None]:
    """Entering a CUDA autocast enters one for the CPU too, with the same type. CUDA's rules come with the first."""
    enter, leave, register = autocast.__enter__, autocast.__exit__, Library.impl
    inner: dict[int, list[Any]] = {}  # a context may be entered again inside itself
    rules: list[Library] = []

    def __enter__(self: Any) -> Any:
        if self.device == "cuda":
            if not rules:
                rules.append(_cuda_rules(register))
            on_cpu = autocast("cpu", self.fast_dtype, self._enabled, self._cache_enabled)
            enter(on_cpu)
            inner.setdefault(id(self), []).append(on_cpu)
        return enter(self)

    def __exit__(self: Any, *raised: Any) -> Any:
        try:
            return leave(self, *raised)
        finally:
            if self.device == "cuda":
                leave(inner[id(self)].pop(), *raised)

    try:
        with patched([(autocast, "__enter__", __enter__), (autocast, "__exit__", __exit__)]):
            yield
    finally:
        for library in rules:
            library._destroy()


def _cuda_rules(register: Callable[..., None]) -> Library:
    """Kernels for the CPU's autocast of the operators that only CUDA's has a rule for."""
    library = Library("aten", "IMPL")
    for qualified in torch._C._dispatch_get_all_op_names():
        space, _, full = qualified.partition("::")
        if space != "aten" or _has_rule(qualified, "AutocastCPU") or not _has_rule(qualified, "AutocastCUDA"):
            continue
        name, _, overload = full.partition(".")
        operator = getattr(getattr(torch.ops.aten, name), overload or "default")
        register(library, full, _kernel(operator, _rule(name)), "AutocastCPU")
    return library


def _has_rule(qualified: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key))


def _rule(name: str) -> Rule:
    if name in _LOWER:
        return _in_autocast_type
    if name in _WIDEST:
        return _in_widest
    return _out_in_float if name in _TO_FLOAT else _in_float


def _kernel(operator: Any, rule: Rule) -> Callable[..., Any]:
    """``rule`` under a CUDA autocast; the operator as it is where the program asked for the CPU's."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_CPU_KEY):
            return rule(operator, args, kwargs) if torch.is_autocast_enabled("cuda") else operator(*args, **kwargs)

    return kernel


def _in_float(operator: Any, args: tuple, kwargs: dict) -> Any:
    return operator(*_cast(args, torch.float32), **_cast(kwargs, torch.float32))


def _in_autocast_type(operator: Any, args: tuple, kwargs: dict) -> Any:
    dtype = torch.get_autocast_dtype("cuda")
    return operator(*_cast(args, dtype), **_cast(kwargs, dtype))


def _in_widest(operator: Any, args: tuple, kwargs: dict) -> Any:
    halves = {leaf.dtype for leaf in _leaves((args, kwargs)) if _casts(leaf)}
    return operator(*args, **kwargs) if len(halves) < 2 else _in_float(operator, args, kwargs)


def _out_in_float(operator: Any, args: tuple, kwargs: dict) -> Any:
    given = dict(zip((argument.name for argument in operator._schema.arguments), args, strict=False)) | kwargs
    if given.get("dtype") is None and _casts(next(iter(given.values()))):
        given["dtype"] = torch.float32
    return operator(**given)


def _casts(leaf: Any) -> bool:
    """Whether autocast changes a value: tensors of floating-point numbers but float64."""
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for item in tree for leaf in _leaves(item)] if isinstance(tree, list | tuple) else [tree]


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    if isinstance(tree, dict):
        return {name: _cast(item, dtype) for name, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_cast(item, dtype) for item in tree)
    return tree.to(dtype) if _casts(tree) else tree
