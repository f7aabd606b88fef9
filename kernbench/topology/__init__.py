"""Machines: what they are made of, checked from YAML, and the graph of nodes, links and routes they form."""

from kernbench.topology.document import presets
from kernbench.topology.graph import Link, NoRouteError, Origin, SystemGraph
from kernbench.topology.loader import load
from kernbench.topology.problem import Problem, TopologyError
from kernbench.topology.schema import SystemSpec
from kernbench.topology.sip import KINDS

__all__ = [
    "KINDS",
    "Link",
    "NoRouteError",
    "Origin",
    "Problem",
    "SystemGraph",
    "SystemSpec",
    "TopologyError",
    "load",
    "presets",
]
