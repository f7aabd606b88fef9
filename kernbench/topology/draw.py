"""A picture of a machine: all SIPs with their links on the left, the inside of one SIP on the right."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kernbench.topology.graph import SystemGraph
from kernbench.topology.units import BANDWIDTH, BYTES, DURATION, FREQUENCY, format_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Point = tuple[float, float]

_rate = partial(format_quantity, dimension=BANDWIDTH, digits=4)
_size = partial(format_quantity, dimension=BYTES, digits=4)
_time = partial(format_quantity, dimension=DURATION, digits=4)
_clock = partial(format_quantity, dimension=FREQUENCY, digits=4)

_INK, _PAPER, _BROKEN = "#26323c", "#f4f6f8", "#c8102e"
_COLOUR = {
    "host": "#8a8f98",
    "sip": "#5b3fa0",
    "io": "#b07d2b",
    "d2d": "#1f7a4d",
    "port": "#6f9bd1",
    "noc": "#1f4e9c",
}
_WIDTH = {"host": 1.2, "sip": 2.6, "io": 1.4, "d2d": 4.0, "port": 1.4, "noc": 1.0}
_FEW = 16
"""Up to so many SIPs or PEs get their own labels."""


def draw(graph: SystemGraph, path: str | Path) -> None:
    """Draw the machine to ``path``; its suffix decides the format (``.png``, ``.svg``, ``.pdf``).

    Links that ``links:`` changes are labelled with their own bandwidth, disabled ones are dashed red.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("drawing needs matplotlib: pip install 'kernbench[plot]'") from None

    figure = Figure(figsize=(15, 8.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    system, inside = figure.subplots(1, 2, width_ratios=(1, 1.35))
    _draw_system(system, graph)
    _draw_sip(inside, graph)
    for axes in (system, inside):
        axes.set_aspect("equal")
        axes.axis("off")
    parts = [(graph.n_sips, "SIP"), (graph.cubes_per_sip, "cube"), (graph.pes_per_cube, "PE")]
    title = f"{graph.spec.name}: " + " x ".join(f"{count:,} {part}{'s' * (count > 1)}" for count, part in parts)
    figure.suptitle(title, fontsize=15, fontweight="bold", color=_INK)
    figure.legend(handles=_legend(graph), loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    figure.savefig(path, dpi=150)


def _legend(graph: SystemGraph) -> list[Line2D]:
    from matplotlib.lines import Line2D

    spec = graph.spec
    sip, cube, fabric, host = spec.sip, spec.sip.cube, spec.system.fabric, spec.system.host.link
    texts = {
        "host": f"host link {_rate(host.bandwidth)}, {_time(host.latency)}",
        "sip": f"{fabric.kind.replace('_', ' ')} link {_rate(fabric.bandwidth)}, {_time(fabric.latency)}",
        "io": f"cube to IO die {_rate(sip.io_bandwidth)}, {_time(sip.io.latency)}",
        "d2d": f"cube to cube {_rate(sip.d2d.bandwidth)}, {_time(sip.d2d.latency)}",
        "port": f"HBM port {_rate(cube.hbm_port_bandwidth)}",
        "noc": f"NoC link {_rate(cube.noc.bandwidth)}, {_time(cube.noc.latency)}",
    }
    if graph.n_sips == 1:
        del texts["sip"]
    if graph.cubes_per_sip == 1:
        del texts["d2d"]
    return [Line2D([], [], color=_COLOUR[k], lw=_WIDTH[k] + 0.6, label=text) for k, text in texts.items()]


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str = "", **style: object) -> None:
    """A rounded box with its lower left corner at (x, y) and its text in the middle."""
    from matplotlib.patches import FancyBboxPatch

    look = {"facecolor": "white", "edgecolor": _INK, "lw": 1.0, "zorder": 3} | style
    size, turn = float(str(look.pop("fontsize", 9))), float(str(look.pop("rotation", 0)))
    colour = str(look.pop("color", _INK))
    radius = min(0.08, 0.2 * min(width, height))
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=f"round,pad=0,rounding_size={radius}", **look))  # type: ignore[arg-type]
    axes.text(
        x + width / 2,
        y + height / 2,
        text,
        ha="center",
        va="center",
        fontsize=size,
        rotation=turn,
        color=colour,
        zorder=9,
    )


def _wire(axes: Axes, kind: str, *points: Point, **style: object) -> None:
    look = {"color": _COLOUR[kind], "lw": _WIDTH[kind], "solid_capstyle": "butt", "zorder": 2} | style
    axes.plot(*np.array(points).T, **look)  # type: ignore[arg-type]


def _draw_system(axes: Axes, graph: SystemGraph) -> None:
    """SIPs where the fabric suggests, the host below."""
    n, fabric = graph.n_sips, graph.fabric
    at = _positions(graph)
    half = 0.42 if n <= _FEW or fabric.kind in ("mesh", "torus") else max(0.08, 4.0 / n)
    (left, low), (right, high) = np.min(at, 0) - half - 0.55, np.max(at, 0) + half + 0.55
    middle, link = (left + right) / 2, graph.spec.system.host.link
    _box(axes, left, low, right - left, high - low, facecolor=_PAPER, zorder=0)
    _wire(axes, "host", (middle, low), (middle, low - 0.6), lw=3)
    _box(axes, middle - 0.9, low - 1.15, 1.8, 0.55, "host", facecolor="#e6e8eb", fontsize=11)
    axes.text(middle + 0.12, low - 0.3, f"{_rate(link.bandwidth)} to each SIP", va="center", fontsize=9, color=_INK)
    edges = fabric.edges[fabric.edges[:, 0] < fabric.edges[:, 1]]
    crowded = len(edges) > 4096
    for start, end in (edges[edges[:, 0] == 0] if crowded else edges).tolist():
        _draw_fabric_link(axes, graph, at, start, end)
    for sip, (x, y) in enumerate(at[:n]):
        label = f"SIP {sip}\n{graph.pes_per_sip} PEs" if n <= _FEW else ""
        _box(axes, x - half, y - half, 2 * half, 2 * half, label, facecolor="#e9e4f5", fontsize=9 if n <= 8 else 7)
    if fabric.kind == "switch" and n > 1:
        x, y = at[n]
        _box(axes, x - 0.7, y - 0.22, 1.4, 0.44, "switch", facecolor="#e9e4f5", fontsize=10)
    kind = fabric.kind.replace("_", " ")
    shape = f"{fabric.shape[0]} x {fabric.shape[1]} {kind}" if fabric.kind in ("mesh", "torus") else kind
    partly = ", only the links of SIP 0 are drawn" if crowded else ""
    axes.set_title("one SIP" if n == 1 else f"{n:,} SIPs: {shape}{partly}", fontsize=12, color=_INK)


def _positions(graph: SystemGraph) -> list[Point]:
    """Centres of the fabric's nodes, about one and a half apart."""
    n, kind = graph.n_sips, graph.fabric.kind
    if kind in ("mesh", "torus"):
        cols = graph.fabric.shape[1]
        return [(1.6 * (i % cols), -1.6 * (i // cols)) for i in range(n)]
    if kind == "switch":
        spread = 1.2 if n <= _FEW else 16 / n
        return [(spread * i, 0.0) for i in range(n)] + [(spread * (n - 1) / 2, 1.6)]
    if n <= 2:
        return [(1.8 * i, 0.0) for i in range(n)]
    radius = max(1.25, 0.26 * min(n, _FEW))
    turn = 2 * np.pi * np.arange(n) / n
    return list(zip((radius * np.sin(turn)).tolist(), (radius * np.cos(turn)).tolist(), strict=True))


def _draw_fabric_link(axes: Axes, graph: SystemGraph, at: list[Point], start: int, end: int) -> None:
    names = ["switch" if node == graph.n_sips else graph.io_node(node) for node in (start, end)]
    both = [graph.link_id(*names), graph.link_id(*reversed(names))]
    style: dict[str, object] = {"alpha": 0.5 if graph.fabric.kind == "fully_connected" and graph.n_sips > 4 else 1.0}
    text = ""
    speed = min(float(graph.link_bandwidth[link]) for link in both)
    if any(link in graph.disabled for link in both):
        style = {"color": _BROKEN, "ls": (0, (2, 2))}
        text = "disabled"
    elif speed != graph.spec.system.fabric.bandwidth:
        style = {"color": _BROKEN}
        text = _rate(speed)
    elif graph.n_sips <= 8 and graph.fabric.kind not in ("fully_connected", "switch"):
        text = _rate(speed)
    a, b = np.array(at[start]), np.array(at[end])
    far = np.abs(b - a).max() > 2 and graph.fabric.kind == "torus"
    if far:  # around the edge of a torus: an arc beside the SIPs it passes
        side = np.array([0.0, 0.62]) if a[1] == b[1] else np.array([0.62, 0.0])
        t = np.linspace(0, np.pi, 40)[:, None]
        curve = a + (b - a) * (1 - np.cos(t)) / 2 + side * np.sin(t)
        _wire(axes, "sip", *map(tuple, curve.tolist()), **(style | {"lw": 1.6, "zorder": 1}))
        a = b = curve[20]
    else:
        _wire(axes, "sip", tuple(a), tuple(b), **style)
    if text:
        x, y = (a + b) / 2
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=str(style.get("color", _COLOUR["sip"])),
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2}, zorder=6)  # fmt: skip


def _draw_sip(axes: Axes, graph: SystemGraph) -> None:
    """Cubes with HBM, NoC, PEs and hub; the IO die below."""
    grid = graph.spec.sip.cubes
    size, gap = 4.0, 0.9
    step = size + gap
    wide = grid.cols * step - gap
    bottom = -grid.rows * step - 0.3
    side = gap / 2 if grid.rows > 1 else 0.0  # where links of upper cubes pass on their way to the IO die
    _box(axes, -0.4, bottom - 0.4, wide + side + 0.8, 0.8 - bottom, facecolor=_PAPER, zorder=0)
    _box(axes, 0, bottom, wide + side, 0.75, "IO die", facecolor="#f5e7cf", fontsize=11)
    for cube in range(grid.count):
        row, col = divmod(cube, grid.cols)
        x, y = col * step, -row * step - size
        lane = x + size + gap * (0.15 + 0.3 * (row + 1) / grid.rows) if row < grid.rows - 1 else x + size - 0.17
        points = [(x + size - 0.17, y), (x + size - 0.17, y - 0.2), (lane, y - 0.2), (lane, bottom + 0.75)]
        _wire(axes, "io", *points)
        if col + 1 < grid.cols:
            _wire(axes, "d2d", (x + size, y + 0.5 * size), (x + step, y + 0.5 * size), zorder=1)
        if row + 1 < grid.rows:
            _wire(axes, "d2d", (x + 0.5 * size, y), (x + 0.5 * size, y - gap), zorder=1)
        _draw_cube(axes, graph, cube, x, y, size)
    alike = "each of the SIPs" if graph.n_sips > 1 else "the SIP"
    pe = graph.spec.sip.cube.pe
    axes.set_title(f"inside {alike}: {grid.rows} x {grid.cols} cubes", fontsize=12, color=_INK)
    facts = (
        f"PE: TCM {_size(pe.tcm.capacity)}, GEMM {pe.gemm.rows} x {pe.gemm.cols} at {_clock(pe.gemm.clock)}, "
        f"vector {pe.vector.lanes} lanes, {pe.dma.depth} DMAs in flight"
    )
    axes.text(wide / 2, bottom - 0.6, facts, ha="center", va="top", fontsize=10, color=_INK)


def _draw_cube(axes: Axes, graph: SystemGraph, cube: int, x: float, y: float, size: float) -> None:
    spec = graph.spec.sip.cube
    mesh, crossbar = spec.pes, spec.noc.kind == "crossbar"
    _box(axes, x, y, size, size, facecolor="white", lw=1.4)
    hbm = f"HBM {cube}   {_size(spec.hbm.capacity)}   {_rate(spec.hbm.bandwidth)}"
    _box(axes, x + 0.1, y + 0.1, 0.5, size - 0.2, hbm, facecolor="#dbe9f8", rotation=90, fontsize=9)
    _box(axes, x + size - 0.34, y + 0.1, 0.24, size - 0.2, "hub", facecolor="#d5ebdf", rotation=90, fontsize=7)
    left, right = x + 0.6, x + size - 0.34
    cell_x, cell_y = (right - left - 0.3) / mesh.cols, (size - 0.3) / mesh.rows
    centres = [
        (left + 0.15 + cell_x * (i % mesh.cols + 0.5), y + size - 0.15 - cell_y * (i // mesh.cols + 0.5))
        for i in range(mesh.count)
    ]
    for row in range(mesh.rows):
        first, last = centres[row * mesh.cols], centres[(row + 1) * mesh.cols - 1]
        if crossbar:
            continue
        _wire(axes, "port", (left, first[1]), first, zorder=4)
        _wire(axes, "port", last, (right, last[1]), zorder=4)
        _wire(axes, "noc", first, last, zorder=4)
    for col in range(0 if crossbar else mesh.cols):
        _wire(axes, "noc", centres[col], centres[col - mesh.cols], zorder=4)
    if crossbar:
        _box(
            axes, left + 0.1, y + 0.1, right - left - 0.2, size - 0.2, "", facecolor="#e3ebf6", edgecolor=_COLOUR["noc"]
        )
        for bar in ((left, left + 0.1), (right - 0.1, right)):
            _wire(axes, "port", (bar[0], y + size / 2), (bar[1], y + size / 2), lw=4, zorder=5)
    for i, (cx, cy) in enumerate(centres):
        w, h = 0.66 * cell_x, 0.66 * cell_y
        label = f"PE{i}" if mesh.count <= _FEW else ""
        _box(axes, cx - w / 2, cy - h / 2, w, h, label, facecolor="#fdf3e3", zorder=6, fontsize=7.5)
