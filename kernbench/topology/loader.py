"""Loading a machine: preset or file, then ``--set`` overrides, then the number of SIPs; checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernbench.topology import document
from kernbench.topology.graph import Origin, SystemGraph
from kernbench.topology.problem import Key, Problem, TopologyError, dotted
from kernbench.topology.validate import validate


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), sips: int | None = None) -> SystemGraph:
    """The machine that a preset, a YAML file or a mapping of the same shape describes.

    Args:
        source: ``"ahbm-4sip"``, ``"machines/mine.yaml"``, or nested mappings with the keys of such a file.
        overrides: ``KEY=VALUE`` texts such as ``"sip.cube.hbm.bandwidth=2 TB/s"``, laid over the description in order.
        sips: that many SIPs instead of the description's; a mesh or torus of them becomes the squarest there is unless
            its rows and columns already fit.

    Raises:
        TopologyError: with every problem of the description, one a line, each with file and line.
    """
    tree, problems = _tree(source, overrides)
    if sips is not None:
        tree = _with_sips(tree, sips)
    spec, found = validate(tree)
    problems += found
    graph = None
    if spec is not None:
        try:
            graph = SystemGraph(spec, _provenance(tree))
        except TopologyError as error:
            problems += [replace(p, place=document.place_of(tree, _key(p.path))) for p in error.problems]
    if problems or graph is None:
        raise TopologyError(sorted(problems, key=_by_place))
    return graph


def _by_place(problem: Problem) -> tuple[str, int]:
    file, _, line = problem.place.rpartition(":")
    return file, int(line) if line.isdigit() else 0


def _tree(source: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> tuple[document.Branch, list[Problem]]:
    tree = document.from_mapping(source) if isinstance(source, Mapping) else document.read(document.locate(source))
    if "name" not in tree.entries:
        name = "machine" if isinstance(source, Mapping) else Path(source).stem
        tree = document.merge(tree, document.Branch({"name": document.Leaf(name, tree.place)}, tree.place))
    problems: list[Problem] = []
    for text in overrides:
        try:
            tree = document.merge(tree, document.assignment(text))
        except TopologyError as error:
            problems += error.problems
    return tree, problems


def _with_sips(tree: document.Branch, sips: int) -> document.Branch:
    place = f"sips={sips}"
    entries: dict[str, document.Node] = {"sips": document.Leaf(sips, place)}
    key: Key = ("system", "fabric")
    rows, cols = (_value(tree, (*key, side)) for side in ("rows", "cols"))
    given = [side for side in (rows, cols) if isinstance(side, int)]
    if given and (sips % given[0] if len(given) == 1 else sips != given[0] * given[1]):
        dropped: dict[str, document.Node] = {side: document.Leaf(None, place) for side in ("rows", "cols")}
        entries["fabric"] = document.Branch(dropped, place)
    return document.merge(tree, document.Branch({"system": document.Branch(entries, place)}, tree.place))


def _value(tree: document.Node, key: Key) -> Any:
    return next((leaf.value for at, leaf in document.leaves(tree) if at == key), None)


def _provenance(tree: document.Branch) -> dict[str, Origin]:
    return {dotted(key): Origin(str(leaf.value), leaf.source, leaf.place) for key, leaf in document.leaves(tree)}


def _key(path: str) -> Key:
    """The key that :func:`dotted` wrote as ``path``."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", path))
