"""GPU host code as it is: ``device="cuda"`` programs run through KernBench on a torch that has no GPU.

::

    with kernbench.triton.impersonate("cuda:90") as ctx:
        x = torch.randn(4096, device="cuda")     # host memory that counts as the device's
        kernel[(16,)](x, ...)                    # right values, recorded for its time
        torch.cuda.synchronize()

Libraries that ask when they are imported (``torch.cuda.is_available()`` and the like) have to be imported inside.
Three more ways in: the environment variable ``KERNBENCH_IMPERSONATE=cuda:90`` (read by :func:`impersonate` without a
target, by pytest for the whole session, and by ``kernbench kernel run``), the pytest fixture ``impersonate``, and
``python -m kernbench.triton script.py``.

What is simulated are kernels, streams and events. torch's own operators run on the CPU and take no simulated time, and
copies between ``cpu`` and ``cuda`` are not recorded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

VARIABLE = "KERNBENCH_IMPERSONATE"
DEFAULT_TARGET = "cuda:90"
DEFAULT_TOPOLOGY = "ahbm-1sip"

__all__ = ["impersonate", "target_of_environment"]


def target_of_environment() -> str | None:
    """The target that the environment asks for, if any."""
    return os.environ.get(VARIABLE) or None


@contextmanager
def impersonate(target: str | None = None, topology: Any = None, **options: Any) -> Iterator[Any]:
    """Let torch and Triton believe in a GPU, and run its kernels on a simulated machine.

    Everything is put back at the end, after an exception too. Impersonations nest.

    Args:
        target: ``"cuda:<compute capability>"``, such as ``cuda:80`` or ``cuda:90``; without, what the environment
            variable says, else ``cuda:90``.
        topology: preset, YAML file or loaded machine to open a context on; only where none is open. Without,
            ``ahbm-1sip``.
        options: further arguments of ``RuntimeContext.open``, such as ``overrides``.

    Yields:
        The open RuntimeContext (or, inside a StandaloneDevice, that device).

    Raises:
        ValueError: the target's form is wrong, or a topology is given inside an open context.
        NotImplementedError: a target other than CUDA's.
    """
    from kernbench.kernels import device as devices
    from kernbench.triton import (
        accelerator,
        autocast,
        checks,
        cublas,
        cuda,
        legacy,
        library,
        random,
        threads,
        torch_mode,
    )

    backend, capability = _parse(target or target_of_environment() or DEFAULT_TARGET)
    with ExitStack() as stack:
        if devices.is_active():
            if topology is not None or options:
                raise ValueError(
                    "impersonate: a context is open already, and its machine is used: leave topology and its options "
                    "out, or call impersonate outside the context"
                )
            device = devices.current()
            context = getattr(device, "ctx", device)
        else:
            from kernbench.runtime_api.context import RuntimeContext

            context = stack.enter_context(RuntimeContext.open(topology or DEFAULT_TOPOLOGY, **options))
        stack.enter_context(_triton_believes(backend, capability))
        stack.enter_context(cuda.installed(capability))
        stack.enter_context(accelerator.installed())
        stack.enter_context(legacy.installed())
        stack.enter_context(cublas.installed())
        stack.enter_context(random.installed())
        stack.enter_context(autocast.installed())
        stack.enter_context(torch_mode.installed())
        stack.enter_context(threads.installed())
        stack.enter_context(library.installed())
        stack.enter_context(checks.installed())
        yield context


def _parse(target: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\w+):(\w+)", target)
    if found is None:
        raise ValueError(f"impersonate: expected a target such as 'cuda:90', got {target!r}")
    if found[1] != "cuda":
        raise NotImplementedError(f"impersonate: only CUDA targets such as 'cuda:90' are supported, got {target!r}")
    if not found[2].isdecimal() or int(found[2]) < 10:
        raise ValueError(f"impersonate: expected a compute capability such as 80 or 90, got {target!r}")
    return found[1], int(found[2])


@contextmanager
def _triton_believes(backend: str, capability: int) -> Iterator[None]:
    """Triton's target is the GPU, compiled by KernBench: the vendor's own backend is out of the way meanwhile."""
    from kernbench.kernels.triton_backend import NAME, impersonated

    try:
        import triton
        import triton.backends
    except ImportError:
        triton = None
    hidden: dict[str, Any] = {}
    if triton is not None:
        table = triton.backends.backends
        hidden = dict(table)
        for name in hidden:
            if name != NAME:
                del table[name]
    impersonated.append((backend, capability))
    try:
        yield
    finally:
        impersonated.pop()
        if triton is not None:
            triton.backends.backends.clear()
            triton.backends.backends.update(hidden)
