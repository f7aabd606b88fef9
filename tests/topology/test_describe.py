import io

import numpy as np
import pytest
from rich.console import Console
from topology_machines import SCRATCH, machine

from kernbench import topology
from kernbench.topology import balance, describe


def shown(graph) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(describe.show(graph))
    return out.getvalue()


def test_show_has_the_tree_the_totals_and_the_sources():
    text = shown(topology.load("ahbm-4sip", ["sip.cube.hbm.latency=70 ns"]))
    for part in ("4 x SIP", "4 x cube", "16 x PE", "GEMM  64 x 64 at 1 GHz", "24 GiB, 819 GB/s over 32 channels"):
        assert part in text
    for total in ("13.1 TB/s", "384 GiB", "100 % together", "1.024 TB/s", "400 GB/s"):
        assert total in text
    # 4 SIPs x 64 PEs x 64 x 64 cells x 2 FLOP x 1 GHz
    assert next(line for line in text.splitlines() if line.strip().startswith("f16")).split()[1:] == [
        "8.192", "524.3", "2,097", "160",
    ]  # fmt: skip
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "JESD238" in lines["sip.cube.hbm.bandwidth"]
    assert "70 ns" in lines["sip.cube.hbm.latency"] and "--set" in lines["sip.cube.hbm.latency"]
    assert "launch 3 us, sync 1 us" in lines["system.host"]


def test_show_names_what_is_unusual():
    assert "2 directions disabled" in shown(
        machine(sips=3, links=[{"from": "sip0.io", "to": "sip1.io", "disabled": True}])
    )
    assert "2 x 3 torus" in shown(machine(sips=6, fabric="torus"))


@pytest.mark.parametrize("preset", sorted(topology.presets()))
def test_presets_are_balanced(preset):
    assert describe.check(preset) == []
    assert balance.totals(topology.load(preset)).reachable == 1.0


@pytest.mark.parametrize(
    ("override", "path", "numbers"),
    [
        ("sip.cube.hbm.port_bandwidth=40 GB/s", "sip.cube.hbm.port_bandwidth", ["40 GB/s", "51.19 GB/s", "78 %"]),
        ("sip.d2d.bandwidth=200 GB/s", "sip.d2d.bandwidth", ["200 GB/s", "409.5 GB/s", "49 %"]),
        ("sip.cube.noc.bandwidth=80 GB/s", "sip.cube.noc.bandwidth", ["80 GB/s", "115.2 GB/s", "69 %"]),
        ("sip.io.bandwidth=50 GB/s", "sip.io.bandwidth", ["400 GB/s", "200 GB/s", "4 cubes"]),
    ],
)
def test_a_narrow_part_is_a_warning_with_numbers(override, path, numbers):
    """Each cube reads 819 GB/s, 204.75 from each of the four cubes. So an HBM port (one of four rows) carries 51.2, the
    first NoC link behind the hub 3/4 of the 614.25 / 4 that enter its row, the busiest d2d link two such streams."""
    problems = describe.check("ahbm-4sip", [override])
    assert [(p.path, p.severity, p.place) for p in problems] == [(path, "warning", "--set")]
    for number in numbers:
        assert number in str(problems[0])


def test_check_reports_errors_and_cut_off_parts(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text(SCRATCH.replace("32", "-32"))
    assert [p.severity for p in describe.check(file)] == ["error"] * 3
    file.write_text(
        "extends: ahbm-4sip\nlinks:\n"
        "  - {from: sip0.io, to: sip1.io, disabled: true}\n  - {from: sip2.io, to: sip1.io, disabled: true}\n"
        "  - {from: sip3.cube0.pe0, to: sip3.cube0.r0c0, disabled: true}\n"
    )
    problems = describe.check(file)
    assert [p.severity for p in problems] == ["error", "error"]
    assert problems[0].message.startswith("no route from sip0.io to sip1.io")
    assert problems[1].message.startswith("no route from sip3.cube0.hbm to sip3.cube0.pe0")
    assert problems[0].place == f"{file}:3"


@pytest.mark.parametrize("noc", ["mesh", "crossbar"])
def test_load_on_links_conserves_what_the_pes_draw(noc):
    graph = machine(cubes=(2, 2), pes=(3, 2), noc=noc)
    total = 4 * graph.spec.sip.cube.hbm.bandwidth
    for write in (False, True):
        load = balance.hbm_load(graph, write)
        into = ".pe" if not write else ".hbm"
        arriving = [link.dst.endswith(".hbm") if write else into in link.dst for link in graph.links]
        assert np.isclose(load[np.array(arriving)].sum(), total)
    assert np.isclose(balance.hbm_load(graph).sum(), balance.hbm_load(graph, write=True).sum())


@pytest.mark.parametrize(
    ("fabric", "sips", "links"),
    [
        ("ring", 2, 1),
        ("ring", 8, 2),
        ("ring", 7, 2),
        ("mesh", 12, 3),
        ("torus", 12, 6),
        ("torus", 4, 2),
        ("fully_connected", 6, 9),
        ("switch", 8, 4),
        ("ring", 1, 0),
    ],
)
def test_fabric_bisection_counts_the_links_across(fabric, sips, links):
    graph = machine(sips=sips, fabric=fabric)
    assert balance.fabric_bisection(graph) == links * graph.spec.system.fabric.bandwidth


def test_bisection_sees_exceptions():
    graph = machine(sips=4, links=[{"from": "sip1.io", "to": "sip2.io", "disabled": True}])
    assert balance.fabric_bisection(graph) == graph.spec.system.fabric.bandwidth


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_draw(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    graph = machine(cubes=(2, 1), sips=5, links=[{"from": "sip0.io", "to": "sip1.io", "bandwidth": "3 GB/s"}])
    describe.draw(graph, tmp_path / f"m.{suffix}")
    data = (tmp_path / f"m.{suffix}").read_bytes()
    assert len(data) > 10_000
    if suffix == "png":
        assert data.startswith(b"\x89PNG")
    else:
        assert b"tiny: 5 SIPs x 2 cubes x 4 PEs" in data  # as a comment beside the outlines of its letters


@pytest.mark.parametrize("fabric", ["fully_connected", "mesh", "torus", "switch"])
def test_every_fabric_can_be_drawn(tmp_path, fabric):
    pytest.importorskip("matplotlib")
    describe.draw(machine(sips=9, fabric=fabric, noc="crossbar"), tmp_path / "m.svg")
    assert fabric.replace("_", " ").encode() in (tmp_path / "m.svg").read_bytes()
