"""Machines that several tests of this package build."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from kernbench import topology

SCRATCH = """\
name: mine
sip:
  cube:
    pes: {rows: 2, cols: 2}
    noc: {bandwidth: 256 GB/s}
    hbm: {capacity: 1 GiB, bandwidth: 100 GB/s, channels: 8}
    pe:
      tcm: {capacity: 1 MiB}
      gemm: {rows: 32, cols: 32, clock: 1 GHz}
      vector: {lanes: 32, clock: 1 GHz}
"""
"""About the shortest file that extends nothing."""


def machine(
    cubes: tuple[int, int] = (1, 1),
    pes: tuple[int, int] = (2, 2),
    sips: int = 1,
    fabric: str = "ring",
    noc: str = "mesh",
    links: list[dict[str, Any]] | None = None,
) -> topology.SystemGraph:
    """``tiny`` in another shape."""
    data: dict[str, Any] = {
        "extends": "tiny",
        "system": {"sips": sips, "fabric": {"kind": fabric}},
        "sip": {
            "cubes": {"rows": cubes[0], "cols": cubes[1]},
            "cube": {"pes": {"rows": pes[0], "cols": pes[1]}, "noc": {"kind": noc}},
        },
        "links": links or [],
    }
    return topology.load(data)


def hops(graph: topology.SystemGraph, src: str, dst: str) -> list[str]:
    """Names of the nodes along a route, after checking that its links join up."""
    links = [graph.links[i] for i in graph.route(src, dst)]
    assert all(a.dst == b.src for a, b in pairwise(links))
    return [link.src for link in links[:1]] + [link.dst for link in links]
