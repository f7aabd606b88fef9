"""One SIP: its nodes, its links and the routes inside it. Every SIP of a machine is a copy of it.

Nodes of a cube::

            pe0    pe1                 one PE on each router, numbered row by row
             |      |
    hbm -- r0c0 - r0c1 -- hub -- io    the HBM joins the first router of every row, the hub the last one
      `--- r1c0 - r1c1 --'  |
       \\__________________/ neighbouring hubs

The *hub* is the die's outer edge: links to neighbouring cubes (d2d) and to the IO die end there, and a wide port joins
it to the cube's HBM, so that what leaves the cube's memory never crosses the PEs' network. HBM data enters a row from
one side and everything from outside the cube from the other. Both streams are spread over all rows (a transfer uses the
row of its PE) and run against each other. The hub's ports are as wide as all d2d links of a cube need, and the HBM's as
the HBM needs: only the NoC's own links can keep a cube's PEs from drawing the full bandwidth of both at once. A
crossbar has one HBM port and one hub port.

A router's latency is charged on the links that leave it, ports included; a link into a router is free of it. So a route
costs one NoC latency for each router on its way, in both directions alike.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from kernbench.topology import schema
from kernbench.topology.grid import Grid

LinkKind = Literal["noc", "port", "d2d", "io", "sip", "host"]
KINDS: tuple[LinkKind, ...] = get_args(LinkKind)
"""noc: between routers; port: of a PE, HBM or hub; d2d: between cubes; io: cube to IO die; sip: between SIPs."""

_PLACE = re.compile(r"cube(\d+)\.(?:pe(\d+)|hbm)")


class SipPlan:
    """Nodes (named without their SIP) and directed links of one SIP, its link to the host included.

    Attributes:
        nodes: names such as ``cube1.pe3``, ``cube1.r0c2``, ``cube1.hbm``, ``cube1.hub``, ``io`` and ``host``.
        src, dst: int64[L], positions in ``nodes``.
        kind: int8[L], positions in :data:`KINDS`.
        bandwidth: float64[L], bytes/s.
        latency_ps: int64[L].
    """

    def __init__(self, sip: schema.Sip, host: schema.HostLink) -> None:
        self.spec = sip
        self._cubes = Grid(sip.cubes.rows, sip.cubes.cols)
        self._mesh = Grid(sip.cube.pes.rows, sip.cube.pes.cols)
        self.nodes: list[str] = []
        self.node_id: dict[str, int] = {}
        self.link_id: dict[tuple[str, str], int] = {}
        """(from, to) -> position of the link."""
        self._links: list[tuple[int, int, int, float, int]] = []
        for cube in range(self._cubes.count):
            self._add_cube(f"cube{cube}.")
        for a, b in self._cubes.edges.tolist():
            self._link("d2d", f"cube{a}.hub", f"cube{b}.hub", sip.d2d.bandwidth, sip.d2d.latency)
        for cube in range(self._cubes.count):
            self._pair("io", f"cube{cube}.hub", "io", sip.io_bandwidth, sip.io.latency, sip.io.latency)
        self._pair("host", "host", "io", host.bandwidth, host.latency, host.latency)
        columns = list(zip(*self._links, strict=True))
        self.src, self.dst = np.array(columns[0], np.int64), np.array(columns[1], np.int64)
        self.kind = np.array(columns[2], np.int8)
        self.bandwidth, self.latency_ps = np.array(columns[3], np.float64), np.array(columns[4], np.int64)
        self._memo: dict[tuple[str, str], tuple[int, ...]] = {}

    def _add_cube(self, c: str) -> None:
        """The PEs, NoC, HBM and hub of the cube with the name prefix ``c``."""
        cube, d2d = self.spec.cube, self.spec.d2d
        noc, hop = cube.noc.bandwidth, cube.noc.latency
        for pe in range(self._mesh.count):
            self._pair("port", f"{c}pe{pe}", f"{c}{self._router(pe)}", noc, 0, hop)
        if cube.noc.kind == "mesh":
            for a, b in self._mesh.edges.tolist():
                self._link("noc", f"{c}{self._router(a)}", f"{c}{self._router(b)}", noc, hop)
        ports = cube.hbm_ports
        for row in range(ports):
            self._pair("port", f"{c}hbm", f"{c}{self._hbm_router(row)}", cube.hbm_port_bandwidth, 0, hop)
        neighbours = min(self._cubes.rows - 1, 2) + min(self._cubes.cols - 1, 2)
        outside = max(noc, neighbours * d2d.bandwidth / ports, self.spec.io_bandwidth / ports)
        for row in range(ports):
            self._pair("port", f"{c}hub", f"{c}{self._hub_router(row)}", outside, 0, hop)
        self._pair("port", f"{c}hbm", f"{c}hub", cube.hbm.bandwidth, 0, 0)

    def _router(self, pe: int) -> str:
        """The router a PE sits on."""
        row, col = divmod(pe, self._mesh.cols)
        return f"r{row}c{col}" if self.spec.cube.noc.kind == "mesh" else "xbar"

    def _hbm_router(self, row: int) -> str:
        return self._router(row * self._mesh.cols)

    def _hub_router(self, row: int) -> str:
        return self._router((row + 1) * self._mesh.cols - 1)

    def _pair(self, kind: LinkKind, a: str, b: str, bandwidth: float, there: int, back: int) -> None:
        self._link(kind, a, b, bandwidth, there)
        self._link(kind, b, a, bandwidth, back)

    def _link(self, kind: LinkKind, a: str, b: str, bandwidth: float, latency: int) -> None:
        for name in (a, b):
            if name not in self.node_id:
                self.node_id[name] = len(self.nodes)
                self.nodes.append(name)
        self.link_id[a, b] = len(self._links)
        self._links.append((self.node_id[a], self.node_id[b], KINDS.index(kind), bandwidth, latency))

    def route(self, start: str, end: str) -> tuple[int, ...]:
        """Links from one PE, HBM, ``io`` or ``host`` to another; empty where both are the same."""
        found = self._memo.get((start, end))
        if found is None:
            nodes = self.path(start, end)
            found = tuple(self.link_id[pair] for pair in pairwise(nodes))
            self._memo[start, end] = found
        return found

    def path(self, start: str, end: str) -> list[str]:
        """The nodes of a route, both ends included.

        Inside a cube: through the HBM port of the PE's row, and X before Y between PEs. Between cubes: hub to hub over
        the cube grid, X before Y, entering and leaving a mesh in the PE's own row.
        """
        if start == end:
            return [start]
        a, b = _PLACE.fullmatch(start), _PLACE.fullmatch(end)
        if a is not None and b is not None and a[1] == b[1]:
            return self._inside(f"cube{a[1]}.", start, end, a[2], b[2])
        if a is not None and b is not None:
            hubs = [f"cube{cube}.hub" for cube in self._cubes.path(int(a[1]), int(b[1]))]
        else:
            hubs = [f"cube{m[1]}.hub" for m in (a, b) if m is not None]
        outward = self._to_hub(start, a) if a is not None else ["host", "io"] if start == "host" else ["io"]
        inward = self._to_hub(end, b) if b is not None else ["host", "io"] if end == "host" else ["io"]
        if a is None and b is None:
            return [start, end]
        return [*outward, *hubs, *reversed(inward)]

    def _to_hub(self, start: str, match: re.Match[str]) -> list[str]:
        """Nodes from a PE or HBM to its cube's hub, the hub left out."""
        if match[2] is None:
            return [start]
        row = int(match[2]) // self._mesh.cols
        return [start, *self._along(f"cube{match[1]}.", int(match[2]), (row + 1) * self._mesh.cols - 1)]

    def _inside(self, c: str, start: str, end: str, a: str | None, b: str | None) -> list[str]:
        """Nodes between two places of one cube; ``a`` and ``b`` are their PE numbers, None for the HBM."""
        cols = self._mesh.cols
        first = int(a) if a is not None else int(b or 0) // cols * cols
        last = int(b) if b is not None else first // cols * cols
        return [start, *self._along(c, first, last), end]

    def _along(self, c: str, first: int, last: int) -> list[str]:
        """Routers of cube ``c`` from the one of PE ``first`` to the one of PE ``last``."""
        if self.spec.cube.noc.kind == "crossbar":
            return [f"{c}xbar"]
        return [f"{c}{self._router(cell)}" for cell in self._mesh.path(first, last)]

    def detour(self, start: str, end: str, broken: Collection[int]) -> tuple[int, ...] | None:
        """A shortest route that avoids the links ``broken``, or None. Among equals the one with the lower link numbers,
        decided from the start onwards. PEs, HBMs and the host are never passed through."""
        ends: dict[str, list[tuple[str, int]]] = {}
        for (a, b), link in self.link_id.items():
            if link not in broken:
                ends.setdefault(a, []).append((b, link))
        came: dict[str, tuple[str, int]] = {start: ("", -1)}
        queue = deque([start])
        while queue and end not in came:
            node = queue.popleft()
            if node != start and (node == "host" or _PLACE.fullmatch(node)):
                continue
            for after, link in ends.get(node, ()):
                if after not in came:
                    came[after] = (node, link)
                    queue.append(after)
        if end not in came:
            return None
        links = []
        while end != start:
            end, link = came[end]
            links.append(link)
        return tuple(reversed(links))
