"""Launching a kernel: from tensors and numbers to a record on the current device's stream."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernbench.kernels import device as devices
from kernbench.kernels import foreign
from kernbench.kernels.kernel import Kernel
from kernbench.kernels.tcm import programs_in_flight
from kernbench.memory import Allocation

_NUMBERS = frozenset((int, float, bool))
Grid = Sequence[int] | Callable[[dict[str, Any]], Sequence[int]]


MOST_PROGRAMS = 2**31 - 1
"""A program's number is 32 bits wide."""


class LaunchError(TypeError):
    """A launch got arguments or a grid it cannot use."""


def launch(kernel: Kernel, grid: Grid, args: Sequence[Any]) -> None:
    """Run a kernel on the current device, for its values and its record.

    Args:
        kernel: what to run.
        grid: one to three sizes, or a function of the kernel's constexprs that gives them. A size of 0 runs nothing.
        args: one per argument of the TTIR function, constexprs left out: for a pointer a tensor (anything with
            ``data_ptr()``, a torch CPU tensor or a numpy array, see :mod:`kernbench.kernels.foreign`) or an address in
            the device's space, else an int, a float or a bool.

    Raises:
        NoDeviceError: no context is open.
        LaunchError: a wrong number of arguments, one that is neither a tensor nor a number, or a bad grid.
        OutOfResources: one program needs more scratchpad than a PE has.
    """
    from kernbench.kernels.executor import execute

    device = devices.current()
    sizes = _sizes(kernel, grid)
    values, touched = _resolve(kernel, args, device)
    if 0 in sizes:
        if kernel.communicates:
            device.team.pass_turn(device.member)
        return
    target = device.target
    in_flight = programs_in_flight(kernel.name, kernel.tcm, target.tcm_capacity, target.programs_in_flight)
    device.touch(touched)
    check_co_resident(kernel, sizes, target.pes)
    record = execute(kernel, sizes, values, device.space, target, device.enable_data, device=device)
    record.tcm_bytes = kernel.tcm.nbytes
    record.programs_in_flight = in_flight
    device.submit(record)


def check_co_resident(kernel: Kernel, grid: tuple[int, int, int], pes: int) -> None:
    """Programs that wait for each other have to run at the same time. A PE runs its programs in order and one that
    waits holds the queues of its PE, so there may be one program for each PE: launch as many and let each do more.

    Raises:
        LaunchError: there are more programs than PEs.
    """
    programs = grid[0] * grid[1] * grid[2]
    if programs > pes and kernel.blocks:
        raise LaunchError(
            f"kernel '{kernel.name}' waits for other programs, so all of them have to run at once, one on each PE: the "
            f"grid has {programs} programs and the device {pes} PEs. Launch at most {pes} and let each loop over its "
            "share of the work"
        )


def _sizes(kernel: Kernel, grid: Grid) -> tuple[int, int, int]:
    given = tuple(grid(kernel.constexprs) if callable(grid) else grid)
    try:
        sizes = [operator.index(n) for n in given]  # a tensor of one integer is a size too
    except (TypeError, ValueError):
        sizes = []
    if not 1 <= len(sizes) <= 3 or min(sizes) < 0:
        raise LaunchError(f"kernel '{kernel.name}': the grid must be 1 to 3 sizes of at least 0, got {given!r}")
    x, y, z = (*sizes, 1, 1)[:3]
    if x * y * z > MOST_PROGRAMS:
        raise LaunchError(
            f"kernel '{kernel.name}': a grid of {x} x {y} x {z} is {x * y * z} programs; at most {MOST_PROGRAMS} can "
            "be told apart. Let each program do more"
        )
    return x, y, z


def _resolve(
    kernel: Kernel, args: Sequence[Any], device: devices.Device
) -> tuple[list[int | float | bool], list[Allocation]]:
    """Numbers for the executor, and the allocations the pointers name (each once)."""
    params = kernel.function.args
    if len(args) != len(params):
        names = ", ".join(kernel.arg_names)
        raise LaunchError(f"kernel '{kernel.name}' takes {len(params)} arguments ({names}), got {len(args)}")
    if any(type(arg) not in _NUMBERS and foreign.is_foreign(arg) for arg in args):
        from kernbench.kernels.executor import prepare

        written = prepare(kernel.module, kernel.num_stages).written
        args = foreign.place(args, kernel.arg_names, written, device, kernel.name)
    values: list[int | float | bool] = []
    touched: dict[int, Allocation] = {}
    for is_pointer, name, arg in zip(kernel.pointers, kernel.arg_names, args, strict=True):
        if type(arg) not in _NUMBERS:
            if hasattr(arg, "data_ptr"):
                arg = int(arg.data_ptr())
            elif isinstance(arg, np.generic):
                arg = arg.item()
            if not isinstance(arg, int | float | bool):
                raise LaunchError(
                    f"kernel '{kernel.name}', argument '{name}': expected a tensor or a number, got "
                    f"{type(arg).__name__}"
                )
        if is_pointer:
            found = device.space.find(int(arg))
            if found is None and device.enable_data:
                moved = foreign.device_address(int(arg), device)
                if moved is not None:
                    arg, found = moved, device.space.find(moved)
            if found is None:
                raise LaunchError(
                    f"kernel '{kernel.name}', argument '{name}': address {int(arg):#x} is in no tensor of "
                    f"{device.space.name}. Make the tensor on the device: ctx.zeros, then copy_ from the host tensor"
                )
            touched[found.base] = found
        values.append(arg)
    return values, list(touched.values())
