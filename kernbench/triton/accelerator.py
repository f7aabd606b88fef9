"""``torch.accelerator`` and the other names of torch that mean whatever device the machine has."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.accelerator

from kernbench.triton import streams
from kernbench.triton.patches import patched

_SAME = (
    *("is_available", "device_count", "current_stream", "set_stream", "synchronize"),
    *("empty_cache", "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"),
    *("memory_stats", "reset_peak_memory_stats"),
)
"""Functions with torch.cuda's names."""


def installed() -> AbstractContextManager[None]:
    """They mean the impersonated GPU. To be entered when ``torch.cuda`` answers already."""
    cuda = torch.device("cuda")
    owners = (torch.accelerator, getattr(torch.accelerator, "memory", torch.accelerator))
    changes: list[tuple[Any, str, Any]] = [
        (owner, name, _also(getattr(torch.cuda, name))) for name in _SAME for owner in owners if hasattr(owner, name)
    ]
    renamed = {
        "current_device_index": torch.cuda.current_device,
        "current_device_idx": torch.cuda.current_device,
        "set_device_index": torch.cuda.set_device,
        "set_device_idx": torch.cuda.set_device,
        "get_memory_info": torch.cuda.mem_get_info,
        "current_accelerator": lambda check_available=False: cuda,
        "device_index": torch.cuda.device,
    }
    changes += [(torch.accelerator, name, value) for name, value in renamed.items() if hasattr(torch.accelerator, name)]
    changes += [
        (torch._C, "_get_accelerator", lambda check=None: cuda),
        (torch, "Stream", streams.Stream),
        (torch, "Event", streams.DeviceEvent),
    ]
    return patched(changes)


def _also(function: Any) -> Any:
    """A function that does the same, since torch tells the two apart."""
    return lambda *args, **kwargs: function(*args, **kwargs)
