from itertools import pairwise

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.topology.fabric import SipFabric
from kernbench.topology.grid import Grid, squarest
from kernbench.topology.schema import Fabric

GRIDS = st.builds(Grid, st.integers(1, 7), st.integers(1, 7), st.booleans())


@settings(deadline=None)
@given(GRIDS, st.data())
def test_paths_are_shortest_and_go_along_the_row_first(grid, data):
    cell = st.integers(0, grid.count - 1)
    start, end = data.draw(cell), data.draw(cell)
    path = grid.path(start, end)
    reference = networkx.grid_2d_graph(grid.rows, grid.cols, periodic=grid.wrap)
    ends = (divmod(start, grid.cols), divmod(end, grid.cols))
    assert len(path) - 1 == networkx.shortest_path_length(reference, *ends)
    assert (path[0], path[-1]) == (start, end)
    assert len(set(path)) == len(path)
    joins = set(map(tuple, grid.edges.tolist()))
    assert all(pair in joins for pair in pairwise(path))
    changes_row = [a // grid.cols != b // grid.cols for a, b in pairwise(path)]
    assert changes_row == sorted(changes_row)


@settings(deadline=None)
@given(GRIDS)
def test_neighbours_are_joined_once_each_way(grid):
    reference = networkx.grid_2d_graph(grid.rows, grid.cols, periodic=grid.wrap).to_directed()
    reference.remove_edges_from(list(networkx.selfloop_edges(reference)))
    expected = sorted((a * grid.cols + b, c * grid.cols + d) for (a, b), (c, d) in reference.edges)
    assert [tuple(edge) for edge in grid.edges.tolist()] == expected


def test_the_shorter_way_round_a_ring_and_ascending_at_equal_length():
    ring = Grid(1, 6, wrap=True)
    assert ring.path(1, 3) == [1, 2, 3]
    assert ring.path(1, 5) == [1, 0, 5]
    assert ring.path(1, 4) == [1, 2, 3, 4]
    assert ring.path(4, 1) == [4, 5, 0, 1]


def test_a_wrapped_pair_has_one_link_each_way():
    assert Grid(1, 2, wrap=True).edges.tolist() == [[0, 1], [1, 0]]
    assert Grid(1, 1, wrap=True).edges.tolist() == []
    assert len(Grid(2, 2, wrap=True).edges) == 8


@settings(deadline=None)
@given(st.integers(1, 400))
def test_squarest(count):
    rows, cols = squarest(count)
    assert rows * cols == count
    assert not any(count % r == 0 for r in range(rows + 1, int(count**0.5) + 1))
    assert rows <= cols


@pytest.mark.parametrize("kind", ["ring", "fully_connected", "mesh", "torus", "switch"])
@settings(deadline=None)
@given(st.integers(1, 20), st.data())
def test_fabrics_find_their_own_links(kind, sips, data):
    fabric = SipFabric(Fabric(kind=kind, bandwidth="1 GB/s", latency="1 ns"), sips)
    edges = fabric.edges.tolist()
    assert edges == sorted(edges)
    assert [fabric.link(a, b) for a, b in edges] == list(range(len(edges)))
    counts = {
        "ring": {1: 0, 2: 2}.get(sips, 2 * sips),
        "fully_connected": sips * (sips - 1),
        "switch": 2 * sips if sips > 1 else 0,
    }
    if kind in counts:
        assert len(edges) == counts[kind]
    a, b = data.draw(st.integers(0, sips - 1)), data.draw(st.integers(0, sips - 1))
    path = fabric.path(a, b)
    assert None not in [fabric.link(*pair) for pair in pairwise(path)]
    graph = networkx.DiGraph(edges)
    graph.add_nodes_from(range(sips))
    assert len(path) - 1 == networkx.shortest_path_length(graph, a, b)
    assert fabric.link(a, a) is None


@settings(deadline=None)
@given(st.integers(2, 64))
def test_halves_are_halves(sips):
    for kind in ("ring", "fully_connected", "switch"):
        near = SipFabric(Fabric(kind=kind, latency="1 ns"), sips).halves()
        assert near.shape == (sips,)
        assert np.count_nonzero(near) == sips // 2
