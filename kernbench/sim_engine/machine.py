"""A machine as the engine sees it: numbered links, channels and engines, and the paths that ops take over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kernbench.sim_engine.bound import Int32s, Paths
from kernbench.sim_engine.costs import Costs

if TYPE_CHECKING:
    from kernbench.topology import SystemGraph

Route = tuple[int, ...]
_FEW = 128
"""PEs up to which it is worth looking at all routes between them; where there are more, no link has one feeder only."""


class Machine:
    """Derived from a :class:`~kernbench.topology.SystemGraph`; paths are made when they are first asked for.

    *Collapsed links.* A link whose messages all come from one and the same link, which is no faster, never makes a
    message wait: they leave the feeder at least their own transfer time apart. It is left out of the contended hops and
    only its latency remains, which changes no time. Which links those are follows from every route that a SIP's ops can
    take, so it does not depend on the run. Links between SIPs and to the host are always kept.

    Attributes:
        link_ps_per_byte: float64[L].
        channel_ps_per_byte: of one HBM channel.
        channels: HBM channels of the whole machine; ``channels_per_sip`` of one SIP, ``channels_per_cube`` of one cube.
        stacks: cubes of the whole machine.
        engines: GEMM and vector engines of the whole machine: each SIP's GEMM engines by PE, then its vector engines.
    """

    def __init__(self, graph: SystemGraph, collapse: bool = True) -> None:
        self.graph = graph
        self.costs = Costs.from_spec(graph.spec)
        self.ranks = graph.n_sips
        self.cubes = graph.cubes_per_sip
        self.pes = graph.pes_per_sip
        hbm, dma = graph.spec.sip.cube.hbm, graph.spec.sip.cube.pe.dma
        self.channels_per_cube = int(hbm.channels)
        self.channels_per_sip = self.cubes * self.channels_per_cube
        self.channels = self.ranks * self.channels_per_sip
        self.stacks = self.ranks * self.cubes
        self.channel_ps_per_byte = 1e12 * self.channels_per_cube / hbm.bandwidth
        self.access_ps = int(hbm.latency)
        self.engines = self.ranks * 2 * self.pes
        self.dma_depth, self.dma_issue = int(dma.depth), int(dma.issue)
        bandwidth = np.asarray(graph.link_bandwidth, np.float64)
        with np.errstate(divide="ignore"):
            self.link_ps_per_byte: NDArray[np.float64] = 1e12 / bandwidth
        self.link_latency = np.asarray(graph.link_latency_ps, np.int64)
        self.link_kind: NDArray[np.int8] = np.asarray(graph.link_kind, np.int8)
        self.paths = Paths()
        self._collapse = collapse
        self._collapsed: dict[int, set[int]] = {}
        self._routes: dict[tuple[Route, int], int] = {((), 0): 0}
        self._made: dict[tuple, int] = {}
        self._pe_paths: dict[int, tuple[Int32s, Int32s]] = {}

    def pe_paths(self, rank: int) -> tuple[Int32s, Int32s]:
        """(reading, writing): int32[PEs], the path of each PE of a rank to and from its own HBM. Slots are cubes."""
        found = self._pe_paths.get(rank)
        if found is None:
            route, access = self.graph.route, self.access_ps
            first = rank * self.channels_per_sip
            reading, writing = [], []
            for pe in self._pe_nodes(rank):
                data = [(route(h, pe), self._latency(route(pe, h))) for h in self._hbm_nodes(rank)]
                reading.append(self._path([rank], data, first, first, access))
                out = [(route(pe, h), 0) for h in self._hbm_nodes(rank)]
                writing.append(self._path([rank], out, first, first, access))
            found = self._pe_paths[rank] = np.array(reading, np.int32), np.array(writing, np.int32)
        return found

    def exchange_path(self, source: int, destination: int) -> int:
        """From the HBM of one rank to the HBM of another (or of the same). Slot ``s * cubes + d`` goes from cube s
        to d."""
        key = ("exchange", source, destination)
        if key not in self._made:
            routes = [
                (self.graph.route(a, b) if a != b else (), 0)
                for a in self._hbm_nodes(source)
                for b in self._hbm_nodes(destination)
            ]
            first = (source * self.channels_per_sip, destination * self.channels_per_sip)
            self._made[key] = self._path([source, destination], routes, *first, self.access_ps)
        return self._made[key]

    def peer_path(self, rank: int, pe: int, peer: int, writing: bool) -> int:
        """Between a PE and the HBM of another rank. Slots are cubes of that one."""
        key = ("peer", rank, pe, peer, writing)
        if key not in self._made:
            route, here = self.graph.route, self._pe_nodes(rank)[pe]
            hbm = self._hbm_nodes(peer)
            if writing:
                routes = [(route(here, h), 0) for h in hbm]
            else:
                routes = [(route(h, here), self._latency(route(here, h))) for h in hbm]
            first = peer * self.channels_per_sip
            self._made[key] = self._path([rank, peer], routes, first, first, self.access_ps)
        return self._made[key]

    def message_path(self, rank: int, pe: int, peer: int, other: int) -> int:
        """From one PE to another, of the same rank or of another. Slot 0 is the route; no memory is touched."""
        key = ("message", rank, pe, peer, other)
        if key not in self._made:
            links = self.graph.route(self._pe_nodes(rank)[pe], self._pe_nodes(peer)[other])
            self._made[key] = self._path([rank, peer], [(links, 0)], 0, 0, 0)
        return self._made[key]

    def message_latency(self, rank: int, pe: int, peer: int, other: int) -> int:
        """Picoseconds that the head of a message takes from one PE to another when nothing is in its way."""
        if (rank, pe) == (peer, other):
            return 0
        return self._latency(self.graph.route(self._pe_nodes(rank)[pe], self._pe_nodes(peer)[other]))

    def host_path(self, rank: int, upload: bool) -> int:
        """Between the host and a rank's HBM, moved by a DMA engine on the IO die. Slots are cubes."""
        key = ("upload" if upload else "download", rank)
        if key not in self._made:
            route, io = self.graph.route, self.graph.io_node(rank)
            hbm = self._hbm_nodes(rank)
            if upload:
                routes = [(route("host", h), 0) for h in hbm]
            else:
                routes = [(route(h, "host"), self._latency(route(io, h))) for h in hbm]
            first = rank * self.channels_per_sip
            self._made[key] = self._path([rank], routes, first, first, self.access_ps)
        return self._made[key]

    def local_path(self, rank: int) -> int:
        """Of a pass over a rank's own HBM by all its PEs, each near its data: no route, and no latency beyond the first
        access, which whatever it waits for has paid. Slots are cubes."""
        key = ("local", rank)
        if key not in self._made:
            first = rank * self.channels_per_sip
            self._made[key] = self._path([], [((), 0)] * self.cubes, first, first, 0)
        return self._made[key]

    def _pe_nodes(self, rank: int) -> list[str]:
        per_cube = self.graph.pes_per_cube
        return [self.graph.pe_node(rank, pe // per_cube, pe % per_cube) for pe in range(self.pes)]

    def _hbm_nodes(self, rank: int) -> list[str]:
        return [self.graph.hbm_node(rank, cube) for cube in range(self.cubes)]

    def _latency(self, links: Route) -> int:
        return int(self.link_latency[list(links)].sum())

    def _path(
        self, ranks: Sequence[int], routes: Iterable[tuple[Route, int]], source: int, destination: int, access: int
    ) -> int:
        collapsed = set().union(*(self._collapsed_links(rank) for rank in ranks)) if self._collapse else set()
        numbers = [self._route(links, request, collapsed) for links, request in routes]
        return self.paths.add(numbers, source, destination, access)

    def _route(self, links: Route, request: int, collapsed: set[int]) -> int:
        found = self._routes.get((links, request))
        if found is None:
            kept: list[int] = []
            latencies: list[int] = []
            for link in links:
                if link in collapsed:
                    latencies[-1] += int(self.link_latency[link])
                else:
                    kept.append(link)
                    latencies.append(int(self.link_latency[link]))
            found = self._routes[links, request] = self.paths.add_route(kept, latencies, links, request)
        return found

    def _collapsed_links(self, rank: int) -> set[int]:
        found = self._collapsed.get(rank)
        if found is None:
            feeders: dict[int, set[int]] = {}
            found = self._one_feeder(self._possible_routes(rank), feeders)
            if found and self.pes <= _FEW:
                found = self._one_feeder(self._routes_between_pes(rank), feeders)
            elif self.pes > _FEW:
                found = set()
            self._collapsed[rank] = found
        return found

    def _one_feeder(self, routes: Iterable[Route], feeders: dict[int, set[int]]) -> set[int]:
        """Links that can be left out, given all routes so far; ``feeders`` remembers these."""
        for links in routes:
            for before, link in zip((-1, *links), links, strict=False):
                feeders.setdefault(link, set()).add(before)
        kinds = self.graph.links
        return {
            link
            for link, before in feeders.items()
            if len(before) == 1
            and (feeder := next(iter(before))) >= 0
            and self.link_ps_per_byte[feeder] >= self.link_ps_per_byte[link]
            and kinds[link].kind not in ("sip", "host")
        }

    def _possible_routes(self, rank: int) -> Iterable[Route]:
        """Every route, or the part of it inside the SIP, that an op of this rank or towards it can take."""
        route, io = self.graph.route, self.graph.io_node(rank)
        hbm = self._hbm_nodes(rank)
        for h in hbm:
            for pe in self._pe_nodes(rank):
                yield route(h, pe)
                yield route(pe, h)
            for other in hbm:
                if other != h:
                    yield route(h, other)
            yield route("host", h)
            yield route(h, "host")
            yield route(h, io)
            if self.ranks > 1:  # arrivals from other SIPs: a feeder of their own, apart from the host's
                yield (-2, *route(io, h))

    def _routes_between_pes(self, rank: int) -> Iterable[Route]:
        """Those that only kernels take which communicate."""
        route, io, pes = self.graph.route, self.graph.io_node(rank), self._pe_nodes(rank)
        for pe in pes:
            yield from (route(pe, other) for other in pes if other != pe)
            if self.ranks > 1:
                yield route(pe, io)
                yield (-2, *route(io, pe))
