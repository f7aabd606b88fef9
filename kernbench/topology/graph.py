"""A machine as nodes, links with bandwidth and latency, and routes."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, overload

import numpy as np

from kernbench.topology.fabric import SipFabric
from kernbench.topology.problem import Key, Problem, TopologyError, any_of, dotted, listed, near
from kernbench.topology.schema import LinkException, SystemSpec
from kernbench.topology.sip import KINDS, LinkKind, SipPlan

if TYPE_CHECKING:
    import networkx


class NoRouteError(RuntimeError):
    """Disabled links leave no way between two nodes."""


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a connection."""

    name: str
    """``from->to``."""
    kind: LinkKind
    src: str
    dst: str
    bandwidth: float
    """Bytes/s; 0 for a disabled link."""
    latency_ps: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value of a description comes from."""

    text: str
    """As written: ``819 GB/s``."""
    source: str
    place: str
    """``file:line``, ``--set`` or empty."""


class SystemGraph:
    """A whole machine.

    Links are numbered SIP by SIP (each SIP alike, its host link included), then those between SIPs by (from, to). The
    number of a link depends on nothing but the machine's structure, so bandwidths may change and numbers stay.

    Nodes: ``host``; in SIP s ``sip{s}.io`` and for cube c ``sip{s}.cube{c}.hbm``, ``.hub``, ``.pe{p}`` and
    ``.r{row}c{col}`` (or ``.xbar``); ``switch`` where the fabric has one. :mod:`kernbench.topology.sip` draws the
    inside of a SIP.

    Attributes:
        spec: the description in base units.
        provenance: dotted key -> :class:`Origin`, for everything the description says.
        link_bandwidth: float64[L], bytes/s, 0 where disabled.
        link_latency_ps: int64[L].
        disabled: numbers of the links that ``links:`` switches off; no route uses them.
        broken_sips: SIPs with such a link inside.

    Raises:
        TopologyError: the parts do not make a machine (SIPs without fabric bandwidth, an exception for a link that does
            not exist ...). All problems are reported together.
    """

    def __init__(self, spec: SystemSpec, provenance: dict[str, Origin] | None = None) -> None:
        self.spec = spec
        self.provenance = provenance or {}
        self.n_sips = spec.system.sips
        self.cubes_per_sip = spec.sip.cubes.count
        self.pes_per_cube = spec.sip.cube.pes.count
        self.pes_per_sip = self.cubes_per_sip * self.pes_per_cube
        missing = list(_missing(spec))
        try:
            self.fabric = SipFabric(spec.system.fabric, self.n_sips)
        except TopologyError as error:
            raise TopologyError([*missing, *error.problems]) from None
        self.plan = SipPlan(spec.sip, spec.system.host.link)
        self._per_sip = len(self.plan.src)
        self._fabric_base = self.n_sips * self._per_sip
        joins = len(self.fabric.edges)
        fabric = spec.system.fabric
        self.link_bandwidth = np.r_[np.tile(self.plan.bandwidth, self.n_sips), np.full(joins, fabric.bandwidth)]
        self.link_latency_ps = np.r_[np.tile(self.plan.latency_ps, self.n_sips), np.full(joins, fabric.latency)]
        self.disabled: frozenset[int] = frozenset()
        problems = [*missing, *self._except(spec.links)]
        if problems:
            raise TopologyError(problems)
        self.broken_sips: set[int] = {link // self._per_sip for link in self.disabled if link < self._fabric_base}
        self._routes: dict[tuple[str, str], tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return f"<SystemGraph {self.spec.name}: {self.n_sips} SIPs of {self.pes_per_sip} PEs, {len(self.links)} links>"

    @staticmethod
    def pe_node(sip: int, cube: int, pe: int) -> str:
        """Name of a PE; PEs of a cube are numbered row by row."""
        return f"sip{sip}.cube{cube}.pe{pe}"

    @staticmethod
    def hbm_node(sip: int, cube: int) -> str:
        return f"sip{sip}.cube{cube}.hbm"

    @staticmethod
    def io_node(sip: int) -> str:
        return f"sip{sip}.io"

    @property
    def n_links(self) -> int:
        return len(self.link_bandwidth)

    @cached_property
    def links(self) -> Sequence[Link]:
        """Every link by number. A :class:`Link` is made when it is looked at, so a thousand SIPs cost nothing here."""
        return _Links(self)

    @cached_property
    def link_kind(self) -> np.ndarray:
        """int8[L], positions in ``kernbench.topology.KINDS``."""
        fabric = np.full(len(self.fabric.edges), KINDS.index("sip"), np.int8)
        return np.r_[np.tile(self.plan.kind, self.n_sips), fabric]

    def link_id(self, src: str, dst: str) -> int:
        """The number of the link from one node to another.

        Raises:
            TopologyError: a node does not exist, or no link joins them; the message names near misses.
        """
        for name in (src, dst):
            if (unknown := self._unknown(name)) is not None:
                raise TopologyError([Problem(unknown)])
        found = self._link(src, dst)
        if found is None:
            raise TopologyError([Problem(self._no_link(src, dst))])
        return found

    def route(self, src: str, dst: str) -> tuple[int, ...]:
        """Numbers of the links a message takes between two of PE, HBM, ``sip{s}.io`` and ``host``, in order.

        Always the same: X before Y on meshes, the shorter way round rings (ascending at equal length), the HBM port in
        the PE's row. SIPs are left and entered through their IO dies. From a node to itself it is empty. Around
        disabled links it is a shortest detour.

        Raises:
            TopologyError: a node does not exist or is not an end of routes.
            NoRouteError: disabled links leave no way.
        """
        found = self._routes.get((src, dst))
        if found is None:
            found = self._routes[src, dst] = self._route(src, dst)
        return found

    def latency_ps(self, route: Sequence[int]) -> int:
        """Picoseconds a message's head takes over a route when nothing is in its way."""
        return int(self.link_latency_ps[list(route)].sum())

    def bottleneck(self, route: Sequence[int]) -> float:
        """Bytes/s of the narrowest link of a route."""
        return float(self.link_bandwidth[list(route)].min())

    @cached_property
    def graph(self) -> networkx.DiGraph:
        """The machine as a graph, for looking at: edges have ``id``, ``kind``, ``bandwidth`` and ``latency_ps``.
        Disabled links are left out. Built on first use."""
        import networkx

        made: networkx.DiGraph = networkx.DiGraph(name=self.spec.name)
        for sip in range(self.n_sips):
            made.add_nodes_from(self._full(sip, name) for name in self.plan.nodes)
        for i, link in enumerate(self.links):
            if i not in self.disabled:
                made.add_edge(
                    link.src, link.dst, id=i, kind=link.kind, bandwidth=link.bandwidth, latency_ps=link.latency_ps
                )
        return made

    def _link_at(self, i: int) -> Link:
        if i < self._fabric_base:
            sip, local = divmod(i, self._per_sip)
            src = self._full(sip, self.plan.nodes[self.plan.src[local]])
            dst = self._full(sip, self.plan.nodes[self.plan.dst[local]])
            kind = KINDS[self.plan.kind[local]]
        else:
            src, dst = (self._fabric_node(int(n)) for n in self.fabric.edges[i - self._fabric_base])
            kind = "sip"
        return Link(f"{src}->{dst}", kind, src, dst, float(self.link_bandwidth[i]), int(self.link_latency_ps[i]))

    @staticmethod
    def _full(sip: int, local: str) -> str:
        return local if local == "host" else f"sip{sip}.{local}"

    def _fabric_node(self, node: int) -> str:
        return self.io_node(node) if node < self.n_sips else "switch"

    def _fabric_number(self, name: str) -> int | None:
        if name == "switch":
            return self.n_sips
        sip, local = _split(name)
        return sip if local == "io" else None

    def _link(self, src: str, dst: str) -> int | None:
        """The number of the link between two nodes that exist, or None."""
        (a, from_), (b, to) = _split(src), _split(dst)
        sip = b if a is None else a
        if sip is not None and (b is None or b == sip):
            local = self.plan.link_id.get((from_, to))
            if local is not None:
                return sip * self._per_sip + local
        start, end = self._fabric_number(src), self._fabric_number(dst)
        if start is None or end is None:
            return None
        row = self.fabric.link(start, end)
        return None if row is None else self._fabric_base + row

    def _unknown(self, name: str) -> str | None:
        """What is wrong with a node's name, or None."""
        if name == "host" or (name == "switch" and self.fabric.kind == "switch"):
            return None
        sip, local = _split(name)
        if sip is None or sip >= self.n_sips:
            head, dot, rest = name.partition(".")
            are = "the only SIP is sip0" if self.n_sips == 1 else f"SIPs are sip0 to sip{self.n_sips - 1}"
            alike = [f"{n}{dot}{rest}" for n in near(head, [f"sip{s}" for s in range(self.n_sips)])]
            alike = [n for n in alike if self._unknown(n) is None]
            return f"found `{name}`, but {are}" + (f": did you mean {any_of(alike)}?" if alike else "")
        if local in self.plan.node_id and local != "host":
            return None
        inside = [node for node in self.plan.nodes if node != "host"]
        cube = re.match(r"cube(\d+)\.", local)
        if cube and int(cube[1]) >= self.cubes_per_sip:
            last = self.cubes_per_sip - 1
            are = f"a SIP's cubes are cube0 to cube{last}" if last else "a SIP's only cube is cube0"
            alike = [f"sip{sip}.{local.replace(cube[0], f'cube{last}.')}"]
            hint = "" if self._unknown(alike[0]) else f": did you mean {any_of(alike)}?"
            return f"found `{name}`, but {are}{hint}"
        alike = [f"sip{sip}.{n}" for n in near(local, inside)]
        if alike:
            return f"found `{name}`, which does not exist: did you mean {any_of(alike)}?"
        return f"found `{name}`, expected a node such as `sip{sip}.io`, `sip{sip}.cube0.hub` or `sip{sip}.cube0.pe0`"

    def _no_link(self, src: str, dst: str) -> str:
        ends = sorted(link.dst for link in self.links if link.src == src)
        return f"no link joins `{src}` and `{dst}`: `{src}` has links to {listed(ends[:6])}"

    def _except(self, exceptions: Sequence[LinkException]) -> list[Problem]:
        """Apply ``links:`` and return what is wrong with it."""
        problems = []
        disabled = set()
        for i, item in enumerate(exceptions):
            ends = {"from": item.from_, "to": item.to}
            bad = [(key, text) for key, name in ends.items() if (text := self._unknown(name)) is not None]
            problems += [Problem(text, dotted(("links", i, key))) for key, text in bad]
            if bad:
                continue
            pairs = [(item.from_, item.to)] if item.one_way else [(item.from_, item.to), (item.to, item.from_)]
            ids = [self._link(*pair) for pair in pairs]
            if None in ids:
                problems.append(Problem(self._no_link(*pairs[0]), dotted(("links", i))))
                continue
            for link in ids:
                assert link is not None
                if item.bandwidth is not None:
                    self.link_bandwidth[link] = item.bandwidth
                if item.latency is not None:
                    self.link_latency_ps[link] = item.latency
                if item.disabled:
                    disabled.add(link)
                    self.link_bandwidth[link] = 0.0
        self.disabled = frozenset(disabled)
        return problems

    def _route(self, src: str, dst: str) -> tuple[int, ...]:
        for name in (src, dst):
            if (unknown := self._unknown(name)) is not None:
                raise TopologyError([Problem(unknown)])
            if not re.search(r"(^host|\.io|\.hbm|\.pe\d+)$", name):
                message = f"found `{name}`, which routes only pass through: expected a PE, an HBM, an `io` or the host"
                raise TopologyError([Problem(message)])
        if src == dst:
            return ()
        (a, start), (b, end) = _split(src), _split(dst)
        a, b = (b if a is None else a), (a if b is None else b)
        assert a is not None and b is not None
        if a == b:
            return self._within(a, start, end)
        return self._within(a, start, "io") + self._between(a, b) + self._within(b, "io", end)

    def _within(self, sip: int, start: str, end: str) -> tuple[int, ...]:
        base = sip * self._per_sip
        local: tuple[int, ...] | None = self.plan.route(start, end)
        if sip in self.broken_sips:
            broken = {link - base for link in self.disabled}
            if not broken.isdisjoint(local or ()):
                local = self.plan.detour(start, end, broken)
        if local is None:
            inside = [link for link in self.disabled if link // self._per_sip == sip]
            raise self._cut_off(self._full(sip, start), self._full(sip, end), inside)
        return tuple(base + link for link in local)

    def _between(self, a: int, b: int) -> tuple[int, ...]:
        nodes = self.fabric.path(a, b)
        found = [self.fabric.link(*pair) for pair in pairwise(nodes)]
        links = tuple(self._fabric_base + link for link in found if link is not None)
        if self.disabled.isdisjoint(links):
            return links
        came: dict[int, tuple[int, int]] = {a: (a, -1)}
        queue = deque([a])
        while queue and b not in came:
            node = queue.popleft()
            for after, link in self._fabric_ends.get(node, ()):
                if after not in came:
                    came[after] = (node, link)
                    queue.append(after)
        if b not in came:
            outside = [link for link in self.disabled if link >= self._fabric_base]
            raise self._cut_off(self.io_node(a), self.io_node(b), outside)
        way = []
        while b != a:
            b, link = came[b]
            way.append(link)
        return tuple(reversed(way))

    @cached_property
    def _fabric_ends(self) -> dict[int, list[tuple[int, int]]]:
        """node -> (neighbour, link) over links that work."""
        ends: dict[int, list[tuple[int, int]]] = {}
        for row, (a, b) in enumerate(self.fabric.edges.tolist()):
            if self._fabric_base + row not in self.disabled:
                ends.setdefault(a, []).append((b, self._fabric_base + row))
        return ends

    def _cut_off(self, src: str, dst: str, broken: list[int]) -> NoRouteError:
        names = [self.links[link].name for link in sorted(broken)[:4]]
        more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
        return NoRouteError(f"no route from {src} to {dst}: disabled links cut it ({', '.join(names)}{more})")


class _Links(Sequence[Link]):
    def __init__(self, graph: SystemGraph) -> None:
        self._graph = graph

    def __len__(self) -> int:
        return self._graph.n_links

    @overload
    def __getitem__(self, i: int) -> Link: ...
    @overload
    def __getitem__(self, i: slice) -> list[Link]: ...
    def __getitem__(self, i: int | slice) -> Link | list[Link]:
        if isinstance(i, slice):
            return [self._graph._link_at(j) for j in range(*i.indices(len(self)))]
        return self._graph._link_at(range(len(self))[i])


def _split(name: str) -> tuple[int | None, str]:
    """(SIP, name inside it); (None, name) for nodes outside any SIP."""
    match = re.fullmatch(r"sip(0|[1-9]\d*)\.(.+)", name)
    return (int(match[1]), match[2]) if match else (None, name)


def _missing(spec: SystemSpec) -> list[Problem]:
    """Bandwidths that the number of parts makes necessary."""
    needs: list[tuple[Key, bool, str, str]] = [
        (("system", "fabric", "bandwidth"), spec.system.fabric.bandwidth == 0 and spec.system.sips > 1,
         f"{spec.system.sips} SIPs", "200 GB/s"),
        (("sip", "d2d", "bandwidth"), spec.sip.d2d.bandwidth == 0 and spec.sip.cubes.count > 1,
         f"{spec.sip.cubes.count} cubes", "1 TB/s"),
    ]  # fmt: skip
    return [
        Problem(f"missing: {what} need links between them, add a bandwidth such as `{example}`", dotted(key))
        for key, absent, what, example in needs
        if absent
    ]
