"""Several tries with what was made up, so that a fault is the kernel's and not the inputs'.

Sizes that are no multiples of the blocks come first. Where they lead to a fault, multiples are tried, and where indices
were made up, other indices. What works then is reported, with the fault that the others gave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kernbench.cli.kernel_contents import KINDS
from kernbench.cli.kernel_files import KernelFileError

SMALLEST = 2
"""Sizes, of which each level is smaller than the one before."""


class TooMuch(KernelFileError):
    """What was made up would take too much memory or time."""


@dataclass(frozen=True)
class Trial:
    """Which sizes and indices are made up."""

    odd: bool = True
    """Sizes are no multiples of the blocks."""
    small: int = 0
    """How small sizes are, where others would take too much memory, scratchpad or time: up to :data:`SMALLEST`."""
    narrow: bool = False
    """One program along axes of the grid of which nothing tells how long they are."""
    integers: str = ""
    """What all indices hold, of :data:`KINDS`; empty to go by their names."""

    def __str__(self) -> str:
        """What is unusual about it, to follow what is done; empty for the first."""
        told = [] if self.odd else ["multiples of the block sizes"]
        told += ["", "small sizes", "smallest sizes"][self.small : self.small + 1] if self.small else []
        told += ["one program"] if self.narrow else []
        told += [f"indices: {self.integers}"] if self.integers else []
        return f" ({', '.join(told)})" if told else ""


def run(attempt: Callable[[Trial], tuple[Any, Any]]) -> Any:
    """What is to be reported of a kernel.

    Args:
        attempt: runs it with inputs made up for a trial; returns what was seen, and the inputs.

    Raises:
        KernelFileError: no inputs can be made up.
    """
    trial = Trial()
    while True:
        try:
            ran, inputs = attempt(trial)
            break
        except Exception as error:
            if not _is_too_much(error) or trial.small == SMALLEST:
                raise
            trial = replace(trial, small=trial.small + 1)
    if not _of_inputs(ran.faults):
        return ran

    def again(**other: Any) -> Any:
        """What another trial shows where it leads to no fault; None where it does, or cannot be made."""
        tried = replace(trial, **other)
        try:
            found, _ = attempt(tried)
        except KernelFileError as error:
            smaller = _is_too_much(error) and tried.small < SMALLEST
            return again(**{**other, "small": tried.small + 1}) if smaller else None
        return None if found.faults else found

    fault = ran.faults[0]
    sizes = [f"{n}={v}" for n, v in inputs.values.items() if type(v) is int and inputs.origin.get(n) == "generated"]
    if sizes and (better := again(odd=False)) is not None:
        told = f"works only for multiples of the block sizes: with {', '.join(sizes)}, {fault}"
        # Without a mask that is how the kernel was meant; a mask that leaves too much is wrong.
        masked = any("the mask leaves" in one for one in ran.faults)
        (better.faults if masked else better.notes).insert(0, told)
        return better
    if inputs.free and (better := again(narrow=True)) is not None:
        better.notes.insert(0, f"how many programs there are was made up; with more of them, {fault}")
        return better
    if not inputs.indices:
        return ran
    names = ", ".join(f"'{n}'" for n in inputs.indices)
    for kind in KINDS:
        if (better := again(integers=kind)) is not None:
            better.notes.insert(0, f"with other numbers made up for {names}, {fault}")
            return better
    ran.faults = [f"with numbers that were made up for {names}, {one}" for one in ran.faults]
    ran.notes.append(f"whether the numbers in {names} make sense is not known: --arg or inputs() gives others")
    return ran


def _is_too_much(error: Exception) -> bool:
    return isinstance(error, TooMuch) or type(error).__name__ == "OutOfResources"


def _of_inputs(faults: list[str]) -> bool:
    """Whether other inputs might not have led there."""
    return any("out of bounds" in fault or "race" in fault for fault in faults)
