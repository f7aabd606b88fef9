"""A machine description as text: reading YAML, presets, ``extends``, merging, and where each value was written.

A value is written plainly (``bandwidth: 819 GB/s``) or with its source (``bandwidth: {value: 819 GB/s, source: ...}``).
A ``source`` beside other keys covers every value below it that has none of its own. Sources are attached before files
are merged, so a value that another file replaces loses the source of the old one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from kernbench.topology.problem import Key, Problem, TopologyError, did_you_mean

DEFAULTS = Path(__file__).with_name("defaults.yaml")
"""What every description that extends nothing begins with."""


@dataclass(frozen=True)
class Leaf:
    """A value, as written."""

    value: Any
    place: str
    source: str = ""


@dataclass(frozen=True)
class Branch:
    """A mapping."""

    entries: dict[str, Node]
    place: str


@dataclass(frozen=True)
class Items:
    """A sequence. Merging replaces it whole."""

    nodes: list[Node]
    place: str


Node = Leaf | Branch | Items


@cache
def presets() -> dict[str, Path]:
    """Shipped machines: name -> file. In a source tree they lie in ``topologies/``, in a wheel beside this module."""
    installed = Path(__file__).with_name("presets")
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "topologies"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def locate(source: str | Path, beside: Path | None = None, place: str = "") -> Path:
    """The file that ``source`` names: a path (relative to the folder ``beside``) or a preset.

    Raises:
        TopologyError: there is no such file or preset.
    """
    path = Path(beside or ".") / source
    if path.is_file():
        return path
    if isinstance(source, str) and source in presets():
        return presets()[source]
    if path.suffix in (".yaml", ".yml") or (len(path.parts) > 1 and beside is None):
        raise TopologyError([Problem(f"there is no file {path}", place=place)])
    hint = did_you_mean(str(source), list(presets()))
    message = f"found `{source}`, expected a YAML file or a preset: {hint}"
    raise TopologyError([Problem(message, path="extends" if place else "", place=place)])


def read(path: Path, chain: tuple[Path, ...] = ()) -> Branch:
    """The description in a file, merged over what it extends.

    Raises:
        TopologyError: the file is no YAML mapping, or extends something that does not exist or leads back to it.
    """
    chain = (*chain, path.resolve())
    own = _file(path)
    base = own.entries.get("extends")
    if base is None:
        return merge(_file(DEFAULTS), own)
    target = _extended(base, path.parent)
    if target.resolve() in chain:
        loop = " -> ".join(p.name for p in (*chain[chain.index(target.resolve()) :], target))
        raise TopologyError([Problem(f"leads back to itself: {loop}", path="extends", place=base.place)])
    return merge(read(target, chain), _without_extends(own))


def from_mapping(data: Mapping[str, Any]) -> Branch:
    """A description given as nested mappings in Python; ``extends`` may name a preset or a file."""
    own = convert(data, "")
    assert isinstance(own, Branch)
    base = own.entries.get("extends")
    if base is None:
        return merge(_file(DEFAULTS), own)
    return merge(read(_extended(base, Path())), _without_extends(own))


def assignment(text: str) -> Branch:
    """``sip.cube.hbm.bandwidth=2 TB/s`` as a description of that one value.

    Raises:
        TopologyError: there is no ``=`` or no key, or the value is no YAML.
    """
    from ruamel.yaml import YAML, YAMLError

    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        message = f"found `{text}`, expected KEY=VALUE such as `sip.cube.hbm.bandwidth=2 TB/s`"
        raise TopologyError([Problem(message, place="--set")])
    try:
        node = convert(YAML(typ="safe", pure=True).load(value), "--set")
    except YAMLError:
        raise TopologyError([Problem(f"found `{value}`, which is no YAML value", key.strip(), "--set")]) from None
    for part in reversed(key.split(".")):
        node = Branch({part.strip(): node}, "--set")
    assert isinstance(node, Branch)
    return node


def merge(base: Node, over: Node) -> Any:
    """``over`` laid on ``base``: mappings key by key, everything else replaced."""
    if not (isinstance(base, Branch) and isinstance(over, Branch)):
        return over
    entries = dict(base.entries)
    for key, node in over.entries.items():
        entries[key] = merge(entries[key], node) if key in entries else node
    return Branch(entries, over.place)


def plain(node: Node) -> Any:
    """The values alone: nested dicts and lists."""
    if isinstance(node, Branch):
        return {key: plain(child) for key, child in node.entries.items()}
    if isinstance(node, Items):
        return [plain(child) for child in node.nodes]
    return node.value


def leaves(node: Node, key: Key = ()) -> Iterator[tuple[Key, Leaf]]:
    """Every value with its key, in the order of the description."""
    if isinstance(node, Leaf):
        yield key, node
    elif isinstance(node, Branch):
        for name, child in node.entries.items():
            yield from leaves(child, (*key, name))
    else:
        for i, child in enumerate(node.nodes):
            yield from leaves(child, (*key, i))


def place_of(tree: Branch, key: Key) -> str:
    """Where ``key`` was written; where it was not, the nearest mapping around it in the outermost file."""
    home = tree.place.rpartition(":")[0]
    node: Node = tree
    place = tree.place
    for part in key:
        child = _child(node, part)
        if child is None:
            return place
        node = child
        if node.place.rpartition(":")[0] == home:
            place = node.place
    return node.place


def without(node: Node, key: Key) -> Node:
    """A copy without what stands at ``key``."""
    if not key:
        return node
    child = _child(node, key[0])
    if child is None:
        return node
    kept = [without(child, key[1:])] if len(key) > 1 else []
    if isinstance(node, Branch):
        others = {name: other for name, other in node.entries.items() if name != key[0]}
        return replace(node, entries=others | {str(key[0]): changed for changed in kept})
    assert isinstance(node, Items) and isinstance(key[0], int)
    return replace(node, nodes=[*node.nodes[: key[0]], *kept, *node.nodes[key[0] + 1 :]])


def _child(node: Node, part: str | int) -> Node | None:
    if isinstance(node, Branch):
        return node.entries.get(str(part))
    if isinstance(node, Items) and isinstance(part, int) and part < len(node.nodes):
        return node.nodes[part]
    return None


def convert(data: Any, place: str, source: str = "") -> Node:
    """Plain or ruamel data as a tree of nodes; ``source`` covers values that bring none."""
    return _Converter("", place).node(data, place, source)


@dataclass
class _Converter:
    """Turns loaded data into nodes. ``file`` prefixes line numbers; without it every node stands at ``fixed``."""

    file: str
    fixed: str = ""
    problems: list[Problem] = field(default_factory=list)

    def node(self, data: Any, place: str, source: str) -> Node:
        if isinstance(data, Mapping):
            if "value" in data and set(data) <= {"value", "source"}:
                return Leaf(data["value"], place, str(data.get("source", source)))
            source = str(data.get("source", source))
            entries = {str(k): self.node(v, self.line(data, k), source) for k, v in data.items() if k != "source"}
            return Branch(entries, place)
        if isinstance(data, (list, tuple)):
            return Items([self.node(v, self.line(data, i), source) for i, v in enumerate(data)], place)
        return Leaf(data, place, source)

    def line(self, data: Any, key: str | int) -> str:
        if not self.file:
            return self.fixed
        try:
            line = data.lc.data[key][0]
        except KeyError:  # came through a YAML merge key
            line = data.lc.line
        return f"{self.file}:{line + 1}"


def _extended(base: Node, folder: Path) -> Path:
    if not isinstance(base, Leaf) or not isinstance(base.value, str):
        raise TopologyError([Problem("expected the name of one preset or file", path="extends", place=base.place)])
    return locate(base.value, beside=folder, place=base.place)


def _without_extends(tree: Branch) -> Branch:
    return replace(tree, entries={key: node for key, node in tree.entries.items() if key != "extends"})


def _file(path: Path) -> Branch:
    try:
        stat = path.stat()
    except OSError as error:
        raise TopologyError([Problem(f"cannot be read: {error.strerror}", place=str(path))]) from None
    return _parse(path, _shown(path), (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def _parse(path: Path, shown: str, version: tuple[int, int]) -> Branch:
    """``version`` makes a changed file be read again."""
    from ruamel.yaml import YAML, YAMLError
    from ruamel.yaml.error import MarkedYAMLError

    try:
        data = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = str(error.problem or error.context).split(" with value")[0]
        raise TopologyError([Problem(f"not valid YAML: {what}", place=f"{shown}:{line}")]) from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise TopologyError([Problem(f"cannot be read: {error}", place=shown)]) from None
    if not isinstance(data, Mapping):
        found = "nothing" if data is None else f"a {'list' if isinstance(data, list) else 'single value'}"
        message = f"found {found}, expected keys such as `name`, `extends`, `system`, `sip`"
        raise TopologyError([Problem(message, place=f"{shown}:1")])
    tree = _Converter(shown).node(data, f"{shown}:1", "")
    assert isinstance(tree, Branch)
    return tree


def _shown(path: Path) -> str:
    """The path as a person in this folder would write it."""
    inside = os.path.relpath(path)
    return str(path) if inside.startswith("..") else inside
