"""Generators of random numbers on the impersonated GPU.

torch's CPU generator makes the numbers. What programs can see of a GPU's generator is its state, which libraries hand
to their own kernels: a seed and an offset, 8 bytes each. Reading or setting it starts the CPU generator anew from the
two, so that a state which is set again gives the same numbers again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kernbench.triton.patches import patched

_OFFSET = 4
"""The step of the offset: a draw of Philox has four numbers."""
_CPU_GENERATOR: type[Any] = torch.Generator


class _AnyGenerator(type(_CPU_GENERATOR)):  # type: ignore[misc]
    def __instancecheck__(cls, made: Any) -> bool:
        return isinstance(made, _CPU_GENERATOR)


class Generator(_CPU_GENERATOR, metaclass=_AnyGenerator):
    """``torch.Generator`` that takes ``device="cuda"``."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type == "cpu":
            return _CPU_GENERATOR()
        made = super().__new__(cls, "cpu")
        made._seed, made._offset = _CPU_GENERATOR.initial_seed(made), 0
        made._follower = None  # a generator that starts where this one does
        return made

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def manual_seed(self, seed: int) -> Generator:
        self._seed, self._offset = seed % 2**64, 0
        self._start()
        return self

    def seed(self) -> int:
        self.manual_seed(super().seed())
        return self._seed

    def initial_seed(self) -> int:
        return self._seed

    def get_offset(self) -> int:
        return self._offset

    def set_offset(self, offset: int) -> None:
        self._offset = offset
        self._start()

    def get_state(self) -> torch.Tensor:
        """uint8[16]: seed and offset."""
        self.set_offset(self._offset + _OFFSET)
        return torch.tensor([_signed(self._seed), self._offset], dtype=torch.int64).view(torch.uint8)

    def set_state(self, state: torch.Tensor) -> Generator:
        if state.dtype != torch.uint8 or state.numel() != 16:
            raise RuntimeError(f"expected a CUDA generator's state, uint8[16], got {state.dtype}{list(state.shape)}")
        seed, self._offset = state.clone().view(torch.int64).tolist()
        self._seed = seed % 2**64
        self._start()
        return self

    def _start(self) -> None:
        start = (self._seed + 0x9E3779B97F4A7C15 * self._offset) % 2**64
        super().manual_seed(start)
        if self._follower is not None:
            self._follower.manual_seed(start)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


@contextmanager
def installed() -> Iterator[None]:
    """``torch.Generator`` and what ``torch.cuda`` knows of generators."""
    default = Generator("cuda")
    default._follower = torch.default_generator
    shim = _Shim(default)
    names = [name for name in vars(_Shim) if not name.startswith("_")]
    changes = [(owner, name, getattr(shim, name)) for name in names for owner in (torch.cuda, torch.cuda.random)]
    with patched([*changes, (torch.cuda, "default_generators", (default,)), (torch, "Generator", Generator)]):
        yield


class _Shim:
    """Each public method replaces the function of that name in ``torch.cuda``."""

    def __init__(self, default: Generator) -> None:
        self._default = default

    def get_rng_state(self, device: Any = "cuda") -> torch.Tensor:
        return self._default.get_state()

    def set_rng_state(self, new_state: torch.Tensor, device: Any = "cuda") -> None:
        self._default.set_state(new_state)

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [self._default.get_state()]

    def set_rng_state_all(self, new_states: Any) -> None:
        for state in new_states:
            self._default.set_state(state)

    def initial_seed(self) -> int:
        return self._default.initial_seed()

    def manual_seed(self, seed: int) -> None:
        self._default.manual_seed(int(seed))

    manual_seed_all = manual_seed

    def seed(self) -> None:
        self._default.seed()

    seed_all = seed
