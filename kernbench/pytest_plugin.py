"""The pytest plugin: fixtures that hand tests a machine, or let them believe in a GPU.

``topology`` gives an object with ``.topology_obj`` (a SystemGraph). Which machine it is, first match wins:

* ``@pytest.mark.parametrize("topology", [1, 2, 4], indirect=True)``: an int asks for that many SIPs of the default
  preset, a string for a preset or YAML file, a pair for both;
* ``@pytest.mark.topology("tiny", sips=4)`` on the test, class or module;
* ``pytest --kb-topology ahbm-4sip --kb-sips 8``;
* the environment variables ``KERNBENCH_TOPOLOGY`` and ``KERNBENCH_SIPS``;
* otherwise the preset ``ahbm-4sip``.

``impersonate`` runs the test's ``device="cuda"`` code through KernBench and gives the open RuntimeContext; parametrized
indirectly it takes a target such as ``"cuda:80"``. With the environment variable ``KERNBENCH_IMPERSONATE=cuda:90`` the
whole session is run that way, from before any conftest.py or test file is imported.

``kernel_checks`` (or ``pytest --kb-check`` for all tests) turns on the checks of :mod:`kernbench.kernels.sanitize`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kernbench.topology import SystemGraph

DEFAULT = "ahbm-4sip"
_PREPARED = pytest.StashKey[bool]()


@cache
def _load(source: str, sips: int | None) -> SystemGraph:
    import kernbench.topology

    return kernbench.topology.load(source, sips=sips)


@dataclass(frozen=True)
class Topology:
    """A machine under test. Graphs are immutable, so tests share them."""

    source: str
    sips: int | None = None

    @property
    def topology_obj(self) -> SystemGraph:
        """The machine; it has ``.spec``."""
        return _load(self.source, self.sips)

    def with_sips(self, sips: int) -> Topology:
        """The same machine with another number of SIPs."""
        return Topology(self.source, sips)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernbench")
    group.addoption("--kb-topology", help="machine of the 'topology' fixture: preset or YAML file", default=None)
    group.addoption("--kb-sips", type=int, help="number of SIPs of the 'topology' fixture", default=None)
    group.addoption("--kb-check", action="store_true", help="check every kernel for races, uninitialised reads, ...")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    # before any conftest.py: libraries that one imports ask for a GPU when they are imported
    _prepare(early_config, early_config.known_args_namespace.kb_check)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "topology(source, sips=n): the machine that the 'topology' fixture gives")
    _prepare(config, config.getoption("--kb-check"))  # a plugin named by a conftest.py is not there earlier


def _prepare(config: pytest.Config, check: bool) -> None:
    """Switch on, once, what holds for the whole session."""
    if config.stash.get(_PREPARED, False):
        return
    config.stash[_PREPARED] = True
    if check:
        os.environ["KERNBENCH_CHECK"] = "1"
    if os.environ.get("KERNBENCH_IMPERSONATE"):
        from kernbench.triton import impersonate

        stack = ExitStack()
        stack.enter_context(impersonate())
        config.add_cleanup(stack.close)


@pytest.fixture(name="impersonate")
def _impersonate(request: pytest.FixtureRequest) -> Iterator[Any]:
    """GPU host code runs through KernBench during the test, see the module's docstring."""
    from kernbench.triton import impersonate

    with impersonate(getattr(request, "param", None)) as context:
        yield context


@pytest.fixture
def kernel_checks() -> Iterator[None]:
    """Kernels that the test launches are checked (:mod:`kernbench.kernels.sanitize`)."""
    from kernbench.kernels import sanitize

    with sanitize.enabled():
        yield


@pytest.fixture
def topology(request: pytest.FixtureRequest) -> Topology:
    """The machine under test, see the module's docstring."""
    config = request.config
    source = config.getoption("--kb-topology") or os.environ.get("KERNBENCH_TOPOLOGY") or DEFAULT
    from_env = os.environ.get("KERNBENCH_SIPS")
    sips = config.getoption("--kb-sips") or (int(from_env) if from_env else None)
    marker = request.node.get_closest_marker("topology")
    if marker is not None:
        source, sips = _of_marker(*marker.args, **marker.kwargs)
    asked = getattr(request, "param", None)
    if isinstance(asked, int):
        sips = asked
    elif isinstance(asked, str):
        source, sips = asked, None
    elif asked is not None:
        source, sips = asked
    return Topology(source, sips)


def _of_marker(source: str = DEFAULT, sips: int | None = None) -> tuple[str, int | None]:
    return source, sips
