"""Phases as a tree: ``down/gemm`` and ``down/all_reduce`` stand under ``down``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kernbench.sim_engine.timeline import Timeline
from kernbench.sim_engine.usage import Phase, phases


@dataclass
class Node:
    """A phase, or a group of them that has no work of its own."""

    name: str
    """The last part of its path."""
    path: str
    phase: Phase | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def start_ps(self) -> int:
        own = [self.phase.start_ps] if self.phase else []
        return min([*own, *(child.start_ps for child in self.children)])

    @property
    def finish_ps(self) -> int:
        own = [self.phase.finish_ps] if self.phase else []
        return max([*own, *(child.finish_ps for child in self.children)])

    @property
    def span_ps(self) -> int:
        """From the first beginning to the last end below it, on any rank."""
        return self.finish_ps - self.start_ps

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """Itself and all below it with their depth, in the order they began."""
        yield depth, self
        for child in sorted(self.children, key=lambda n: n.start_ps):
            yield from child.walk(depth + 1)


def phase_tree(timeline: Timeline) -> list[Node]:
    """The top-level phases in the order they began. Work outside any phase is called ``(no phase)``."""
    top: dict[str, Node] = {}
    nodes: dict[str, Node] = {}
    for phase in phases(timeline):
        path = phase.name or "(no phase)"
        parent: Node | None = None
        parts = path.split("/")
        for i, part in enumerate(parts):
            prefix = "/".join(parts[: i + 1])
            node = nodes.get(prefix)
            if node is None:
                node = nodes[prefix] = Node(part, prefix)
                if parent is None:
                    top[prefix] = node
                else:
                    parent.children.append(node)
            parent = node
        assert parent is not None
        parent.phase = phase
    return sorted(top.values(), key=lambda n: n.start_ps)


def busiest_group(nodes: list[Node]) -> Node | None:
    """The longest top-level phase that is divided further: what a reader wants enlarged."""
    return max((n for n in nodes if n.children), key=lambda n: n.span_ps, default=None)
