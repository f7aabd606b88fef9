"""What a person is told: each message whole, so that a change of wording is seen."""

import pytest
from topology_machines import SCRATCH

from kernbench import topology


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Loads a file with the text given and returns the lines of the error."""
    monkeypatch.chdir(tmp_path)

    def told(text, **arguments):
        (tmp_path / "m.yaml").write_text(text)
        with pytest.raises(topology.TopologyError) as error:
            topology.load("m.yaml", **arguments)
        lines = str(error.value).splitlines()
        assert len(lines) == len(error.value.problems)
        return lines

    return told


@pytest.mark.parametrize(
    ("found", "instead", "message"),
    [
        (
            "hbm: {capacity: 1 GiB, bandwith: 100 GB/s",
            "hbm: {capacity: 1 GiB, bandwidth: 100 GB/s",
            [
                "m.yaml:6: sip.cube.hbm.bandwidth: missing: add a bandwidth such as `819 GB/s`",
                "m.yaml:6: sip.cube.hbm.bandwith: unknown key `bandwith` (did you mean `bandwidth`?)",
            ],
        ),
        (
            "noc: {bandwidth: 256",
            "noc: {bandwidth: 256 GB/s",
            ["m.yaml:5: sip.cube.noc.bandwidth: found `256` without a unit, expected a bandwidth such as `819 GB/s`"],
        ),
        (
            "capacity: 1 MHz",
            "capacity: 1 MiB",
            [
                "m.yaml:8: sip.cube.pe.tcm.capacity: found `1 MHz`, which is a frequency, "
                "expected a size such as `64 GiB`"
            ],
        ),
        (
            "capacity: 0 MiB",
            "capacity: 1 MiB",
            ["m.yaml:8: sip.cube.pe.tcm.capacity: found `0 MiB`, expected a size above 0 such as `64 GiB`"],
        ),
        (
            "rows: four, cols: 2",
            "rows: 2, cols: 2",
            ["m.yaml:4: sip.cube.pes.rows: found `four`, expected a whole number of at least 1"],
        ),
        (
            "cols: 32, clock: 1 GHz, dataflow: output-stationary",
            "cols: 32, clock: 1 GHz",
            [
                "m.yaml:9: sip.cube.pe.gemm.dataflow: found `output-stationary`, expected one of `output_stationary`, "
                "`weight_stationary`, `input_stationary`: did you mean `output_stationary`?"
            ],
        ),
        (
            "cols: 32, clock: 1 GHz, rate: {fp16: 2}}",
            "cols: 32, clock: 1 GHz}",
            [
                "m.yaml:9: sip.cube.pe.gemm.rate.fp16: unknown element type, expected one of `default`, `f64`, `f32`, "
                "`tf32`, `f16`, `bf16`, `f8e4m3`, `f8e5m2`, `i64`, `i32`, `i16`, `i8`: did you mean `f16` or `bf16`?"
            ],
        ),
        (
            "lanes: 32, clock: 1 GHz, cycles: {exp: fast}",
            "lanes: 32, clock: 1 GHz",
            ["m.yaml:10: sip.cube.pe.vector.cycles.exp: found `fast`, expected a number above 0"],
        ),
        (
            "tcm: 1 MiB",
            "tcm: {capacity: 1 MiB}",
            ["m.yaml:8: sip.cube.pe.tcm: found `1 MiB`, expected a mapping with `capacity`"],
        ),
        (
            "    noc:\n",
            "    noc: {bandwidth: 256 GB/s}\n",
            ["m.yaml:5: sip.cube.noc: found nothing, expected a mapping with `kind`, `bandwidth`, `latency`"],
        ),
        (
            "  capacity: 3 GiB\n  cube:",
            "  cube:",
            [
                "m.yaml:3: sip.capacity: unknown key `capacity` (did you mean `sip.cube.hbm.capacity` or "
                "`sip.cube.pe.tcm.capacity`?)"
            ],
        ),
        (
            "nmae: mine",
            "name: mine",
            ["m.yaml:1: nmae: unknown key `nmae` (did you mean `name`?)"],
        ),
        (
            "name: [mine]",
            "name: mine",
            ["m.yaml:1: name: found a list, expected text"],
        ),
        (
            "zoo: 3",
            "name: mine",
            [
                "m.yaml:1: zoo: unknown key `zoo` "
                "(expected one of `name`, `description`, `system`, `sip`, `links`, `extends`)",
            ],
        ),
    ],
)
def test_one_mistake(told, found, instead, message):
    assert instead in SCRATCH
    assert told(SCRATCH.replace(instead, found)) == message


def test_all_mistakes_of_a_file_are_told_together_in_its_order(told):
    text = """\
extends: ahbm-4sip
sip:
  cube:
    noc: {latency: 2}
    hbm: {bandwith: 1 TB/s}
links:
  - {from: sip0.io, to: sip9.io, bandwidth: 50 GB/s}
  - {from: sip0.io, to: sip1.io, bandwidth: 50}
  - {from: sip0.cube7.hub, to: sip0.cube1.hub, disabled: maybe}
  - {from: sip0.io, to: sip2.io}
"""
    assert told(text) == [
        "m.yaml:4: sip.cube.noc.latency: found `2` without a unit, expected a duration such as `90 ns`",
        "m.yaml:5: sip.cube.hbm.bandwith: unknown key `bandwith` (did you mean `bandwidth`?)",
        "m.yaml:7: links[0].to: found `sip9.io`, but SIPs are sip0 to sip3: did you mean `sip3.io` or `sip2.io`?",
        "m.yaml:8: links[1].bandwidth: found `50` without a unit, expected a bandwidth such as `819 GB/s`",
        "m.yaml:9: links[2].disabled: found `maybe`, expected `true` or `false`",
        "m.yaml:9: links[2].from: found `sip0.cube7.hub`, but a SIP's cubes are cube0 to cube3: "
        "did you mean `sip0.cube3.hub`?",
        "m.yaml:10: links[3]: no link joins `sip0.io` and `sip2.io`: `sip0.io` has links to `host`, `sip0.cube0.hub`, "
        "`sip0.cube1.hub`, `sip0.cube2.hub`, `sip0.cube3.hub`, `sip1.io`",
    ]


def test_links_are_not_doubted_while_the_structure_is(told):
    text = "extends: ahbm-4sip\nsystem: {sisp: 8}\nlinks:\n  - {from: sip6.io, to: sip7.io, bandwidth: 50 GB/s}\n"
    assert told(text) == ["m.yaml:2: system.sisp: unknown key `sisp` (did you mean `sips`?)"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("sip0.oi", "found `sip0.oi`, which does not exist: did you mean `sip0.io`?"),
        ("sip0.cube0.hmb", "found `sip0.cube0.hmb`, which does not exist: did you mean `sip0.cube0.hbm`?"),
        ("cube0.hbm", "found `cube0.hbm`, but the only SIP is sip0"),
        ("sip0.cube1.hbm", "found `sip0.cube1.hbm`, but a SIP's only cube is cube0: did you mean `sip0.cube0.hbm`?"),
        ("sip0.host", "found `sip0.host`, expected a node such as `sip0.io`, `sip0.cube0.hub` or `sip0.cube0.pe0`"),
        ("sip0.zzz", "found `sip0.zzz`, expected a node such as `sip0.io`, `sip0.cube0.hub` or `sip0.cube0.pe0`"),
        ("switch", "found `switch`, but the only SIP is sip0"),
    ],
)
def test_a_node_that_does_not_exist(node, message):
    graph = topology.load("tiny")
    for ask in (lambda: graph.route(node, "host"), lambda: graph.link_id("host", node)):
        with pytest.raises(topology.TopologyError) as error:
            ask()
        assert str(error.value) == message


def test_a_node_that_routes_only_pass_through():
    with pytest.raises(topology.TopologyError, match="expected a PE, an HBM, an `io` or the host"):
        topology.load("tiny").route("sip0.cube0.hub", "host")


def test_missing_parts_are_listed_where_the_file_should_have_them(told):
    assert told("name: mine\nsip:\n  cube:\n    pes: {rows: 2, cols: 2}\n    pe: {}\n") == [
        "m.yaml:3: sip.cube.noc.bandwidth: missing: add a bandwidth such as `819 GB/s`",
        "m.yaml:3: sip.cube.hbm.capacity: missing: add a size such as `64 GiB`",
        "m.yaml:3: sip.cube.hbm.bandwidth: missing: add a bandwidth such as `819 GB/s`",
        "m.yaml:3: sip.cube.hbm.channels: missing: add a whole number of at least 1",
        "m.yaml:5: sip.cube.pe.tcm: missing: add a mapping with `capacity`",
        "m.yaml:5: sip.cube.pe.gemm.rows: missing: add a whole number of at least 1",
        "m.yaml:5: sip.cube.pe.gemm.cols: missing: add a whole number of at least 1",
        "m.yaml:5: sip.cube.pe.gemm.clock: missing: add a frequency such as `1 GHz`",
        "m.yaml:5: sip.cube.pe.vector.lanes: missing: add a whole number of at least 1",
        "m.yaml:5: sip.cube.pe.vector.clock: missing: add a frequency such as `1 GHz`",
    ]


def test_more_parts_need_links_between_them(told):
    assert told(SCRATCH.replace("sip:\n", "sip:\n  cubes: {rows: 1, cols: 2}\n"), sips=3) == [
        "m.yaml:1: system.fabric.bandwidth: missing: 3 SIPs need links between them, "
        "add a bandwidth such as `200 GB/s`",
        "m.yaml:2: sip.d2d.bandwidth: missing: 2 cubes need links between them, add a bandwidth such as `1 TB/s`",
    ]


def test_mistakes_in_overrides_say_so(told):
    overrides = ["sip.cube.hbm.bandwith=2 TB/s", "sip.cube.pe.tcm.capacity=3", "sip.cube", "a..b=1", "name=[1"]
    assert told(SCRATCH, overrides=overrides) == [
        "--set: found `sip.cube`, expected KEY=VALUE such as `sip.cube.hbm.bandwidth=2 TB/s`",
        "--set: found `a..b=1`, expected KEY=VALUE such as `sip.cube.hbm.bandwidth=2 TB/s`",
        "--set: name: found `[1`, which is no YAML value",
        "--set: sip.cube.hbm.bandwith: unknown key `bandwith` (did you mean `bandwidth`?)",
        "--set: sip.cube.pe.tcm.capacity: found `3` without a unit, expected a size such as `64 GiB`",
    ]
    assert told(SCRATCH, sips=0) == ["sips=0: system.sips: found `0`, expected a whole number of at least 1"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "m.yaml:1: found nothing, expected keys such as `name`, `extends`, `system`, `sip`"),
        ("- 1\n- 2\n", "m.yaml:1: found a list, expected keys such as `name`, `extends`, `system`, `sip`"),
        ("name: a\nname: b\n", 'm.yaml:2: not valid YAML: found duplicate key "name"'),
        ("name: a\nsip: {cube: [1\nb: 2\n", "m.yaml:3: not valid YAML: expected ',' or ']', but got ':'"),
        (
            "name: a\nextends: tyni\n",
            "m.yaml:2: extends: found `tyni`, expected a YAML file or a preset: did you mean `tiny`?",
        ),
        ("extends: no.yaml\n", "m.yaml:1: there is no file no.yaml"),
        ("extends: [tiny]\n", "m.yaml:1: extends: expected the name of one preset or file"),
        ("extends: tiny\nlinks: 3\n", "m.yaml:2: links: found `3`, expected a list"),
    ],
)
def test_files_that_are_no_description(told, text, line):
    assert told(text) == [line]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tinny", "found `tinny`, expected a YAML file or a preset: did you mean `tiny`?"),
        (
            "zzz",
            "found `zzz`, expected a YAML file or a preset: expected one of "
            "`ahbm-1sip`, `ahbm-4sip`, `ahbm-8sip`, `tiny`",
        ),
        ("machines/zzz", "there is no file machines/zzz"),
    ],
)
def test_sources_that_do_not_exist(source, message):
    with pytest.raises(topology.TopologyError) as error:
        topology.load(source)
    assert str(error.value) == message
