"""A kernel ready to launch: its TTIR, and what is worked out from it once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from kernbench.kernels import comm, descriptors, polls, ttir

if TYPE_CHECKING:
    from kernbench.kernels.tcm import TcmNeed


@dataclass(eq=False)
class Kernel:
    """One specialisation of a kernel: TTIR text for given argument types and compile-time constants."""

    name: str
    text: str
    """TTIR with locations, as Triton prints it."""
    num_stages: int = 3
    """Buffer slots of each load in a loop that says nothing else itself; 0, which some write for no overlap, is 1."""
    constexprs: dict[str, Any] = field(default_factory=dict)
    """Compile-time constants, for people: they are already in the text."""
    source_hash: str = ""
    """Of the source the text was made from; empty where unknown."""

    names: tuple[str, ...] = ()
    """Names of the runtime arguments, where the text does not carry them (before Triton 3.6)."""

    shares: bool = False
    """Whether what is worked out of the text is shared with other kernels of the same text and names that share."""

    def __post_init__(self) -> None:
        self.num_stages = max(1, self.num_stages)

    @cached_property
    def module(self) -> ttir.Module:
        """The parsed text, descriptors and block pointers rewritten into blocks of pointers."""
        return _shared(self.text, self.names) if self.shares else _read(self.text, self.names)

    @cached_property
    def function(self) -> ttir.Function:
        """The function a launch enters."""
        return self.module.kernel

    @cached_property
    def communicates(self) -> bool:
        """Whether it uses ``kernbench.language``."""
        return comm.communicates(self.module.functions.values())

    @cached_property
    def blocks(self) -> bool:
        """Whether programs wait for each other in simulated time, so that all have to run at once."""
        return comm.blocks(self.module.functions.values())

    @cached_property
    def arg_names(self) -> tuple[str, ...]:
        """Names of the arguments a launch passes, constexprs left out."""
        return self.names or tuple(arg.name for arg in self.function.args)

    @cached_property
    def pointers(self) -> tuple[bool, ...]:
        """Of each argument a launch passes, whether it is an address."""
        return tuple(map(self.is_pointer, self.function.args))

    @staticmethod
    def is_pointer(arg: ttir.Arg) -> bool:
        """Whether an argument of the function is an address."""
        return isinstance(arg.type, ttir.Pointer)

    @cached_property
    def tcm(self) -> TcmNeed:
        """Scratchpad one program needs."""
        from kernbench.kernels.tcm import analyse

        return analyse(self.function, self.num_stages)


def _read(text: str, names: tuple[str, ...]) -> ttir.Module:
    module = ttir.parse(text)
    function = module.kernel
    if len(names) == len(function.args):
        function.args = tuple(replace(arg, name=name) for arg, name in zip(function.args, names, strict=True))
    return comm.lower(polls.lower(descriptors.lower(module)))


_modules: WeakValueDictionary[tuple[str, tuple[str, ...]], ttir.Module] = WeakValueDictionary()
_latest: deque[ttir.Module] = deque(maxlen=4)
"""Kept for the launch that mostly follows a compilation."""


def _shared(text: str, names: tuple[str, ...]) -> ttir.Module:
    """As :func:`_read`, the same object for the same text and names as long as somebody has it. Specialisations that
    differ only in what is advice to GPUs (``num_warps``), or in ``num_stages``, have the same text."""
    module = _modules.get((text, names))
    if module is None:
        module = _modules.get((text, ()))
        if module is None or tuple(arg.name for arg in module.kernel.args) != names:
            module = _read(text, names)
        _modules[text, names] = module
        _latest.append(module)
    return module
