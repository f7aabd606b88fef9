import subprocess
import sys

import pytest
from topology_machines import SCRATCH

from kernbench import topology
from kernbench.topology.document import DEFAULTS, presets
from kernbench.topology.schema import SystemSpec
from kernbench.topology.validate import paths


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes files into a fresh current folder."""
    monkeypatch.chdir(tmp_path)

    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)

    return write


def test_a_short_file_from_scratch_is_a_machine(write):
    assert len(SCRATCH.splitlines()) <= 12
    write(mine=SCRATCH)
    spec = topology.load("mine.yaml").spec
    assert (spec.name, spec.system.sips, spec.sip.cubes.count) == ("mine", 1, 1)
    assert spec.sip.cube.hbm.capacity == 2**30
    assert spec.sip.cube.hbm.bandwidth == 100e9
    assert spec.sip.cube.hbm.latency == 90_000


def test_extends_lays_a_file_over_a_preset_or_another_file(write, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "wide.yaml").write_text("extends: ahbm-4sip\nsip: {cube: {noc: {bandwidth: 512 GB/s}}}\n")
    write(mine="extends: base/wide.yaml\nsystem:\n  sips: 2\n")
    base, spec = topology.load("ahbm-4sip").spec, topology.load("mine.yaml").spec
    assert spec.system.sips == 2
    assert spec.sip.cube.noc.bandwidth == 512e9
    assert spec.sip.cube.noc.latency == base.sip.cube.noc.latency
    assert spec.sip.cube.hbm == base.sip.cube.hbm
    assert spec.system.fabric == base.system.fabric


def test_a_nameless_file_is_called_after_itself(write):
    write(mine=SCRATCH.replace("name: mine\n", ""), child="extends: mine.yaml\n")
    assert topology.load("mine.yaml").spec.name == "mine"
    assert topology.load("child.yaml").spec.name == "child"


def test_extending_in_a_circle_names_the_circle(write):
    write(a="extends: b.yaml\n", b="name: b\nextends: c.yaml\n", c="extends: a.yaml\n")
    with pytest.raises(topology.TopologyError) as error:
        topology.load("a.yaml")
    assert str(error.value) == "c.yaml:1: extends: leads back to itself: a.yaml -> b.yaml -> c.yaml -> a.yaml"


def test_a_changed_file_is_read_again(write, tmp_path):
    write(mine=SCRATCH)
    assert topology.load("mine.yaml").spec.sip.cube.pes.rows == 2
    (tmp_path / "mine.yaml").write_text(SCRATCH.replace("rows: 2", "rows: 16"))
    assert topology.load("mine.yaml").spec.sip.cube.pes.rows == 16


def test_overrides_change_values_of_every_type():
    texts = [
        "sip.cube.hbm.bandwidth=2 TB/s",
        "sip.cubes.rows=3",
        "system.fabric.kind=torus",
        "sip.cube.pe.gemm.rate.f16=1.5",
        "sip.cube.pe.gemm.rate={f32: 1}",
        " sip.cube.hbm.latency = 50 ns ",
        "links=[{from: sip0.io, to: sip1.io, bandwidth: 50 GB/s}]",
        "sip.cube.hbm.bandwidth=3 TB/s",
    ]
    spec = topology.load("ahbm-4sip", texts).spec
    cube = spec.sip.cube
    assert (cube.hbm.bandwidth, cube.hbm.latency, spec.sip.cubes.rows) == (3e12, 50_000, 3)
    assert (cube.pe.gemm.rate["f16"], cube.pe.gemm.rate["f32"], cube.pe.gemm.rate["i8"]) == (1.5, 1.0, 2.0)
    assert spec.system.fabric.kind == "torus"
    assert spec.links[0].bandwidth == 50e9


@pytest.mark.parametrize("preset", sorted(presets()))
@pytest.mark.parametrize("sips", [1, 2, 3, 4, 7, 8, 16])
def test_every_preset_comes_with_any_number_of_sips(preset, sips):
    graph = topology.load(preset, sips=sips)
    assert (graph.n_sips, graph.spec.system.sips) == (sips, sips)
    joins = [link for link in graph.links if link.kind == "sip"]
    switched = graph.spec.system.fabric.kind == "switch"
    assert len(joins) == {1: 0, 2: 4 if switched else 2}.get(sips, 2 * sips)
    assert len({link.name for link in joins}) == len(joins)


@pytest.mark.parametrize(
    ("given", "sips", "shape"),
    [
        ({}, 12, (3, 4)),
        ({}, 7, (1, 7)),
        ({"rows": 2, "cols": 2}, 12, (3, 4)),
        ({"rows": 2, "cols": 6}, 12, (2, 6)),
        ({"rows": 2}, 12, (2, 6)),
        ({"cols": 3}, 12, (4, 3)),
        ({"rows": 5}, 12, (3, 4)),
    ],
)
def test_the_grid_of_sips_follows_their_number(given, sips, shape):
    data = {"extends": "tiny", "system": {"fabric": {"kind": "mesh", **given}}}
    assert topology.load(data, sips=sips).fabric.shape == shape


def test_a_grid_that_does_not_fit_is_refused():
    data = {"extends": "tiny", "system": {"sips": 6, "fabric": {"kind": "torus", "rows": 4}}}
    with pytest.raises(topology.TopologyError, match="found rows: 4, which is no grid of 6 SIPs: change them"):
        topology.load(data)


def _needs_source(text: str) -> bool:
    return any(character.isdigit() for character in text) or text in ("true", "false")


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_number_of_a_preset_has_a_source(preset):
    numbers = {key: o for key, o in topology.load(preset).provenance.items() if _needs_source(o.text.split("\n")[0])}
    numbers = {key: o for key, o in numbers.items() if key not in ("name", "description")}
    assert len(numbers) > 40
    assert [key for key, origin in numbers.items() if not origin.source] == []


def test_sources_belong_to_the_value_they_stand_beside(write):
    write(
        mine="""\
extends: ahbm-1sip
sip:
  source: measured on a board
  cube:
    hbm:
      bandwidth: 700 GB/s
      latency: {value: 80 ns, source: data sheet}
    noc: {bandwidth: 300 GB/s, source: ours}
system: {sips: 3}
"""
    )
    graph = topology.load("mine.yaml", ["sip.cube.hbm.latency=70 ns"])
    origin = graph.provenance
    assert origin["sip.cube.hbm.bandwidth"] == topology.Origin("700 GB/s", "measured on a board", "mine.yaml:6")
    assert origin["sip.cube.hbm.latency"] == topology.Origin("70 ns", "", "--set")
    assert origin["sip.cube.noc.bandwidth"].source == "ours"
    assert "JESD238" in origin["sip.cube.hbm.channels"].source
    assert origin["system.sips"].source == ""
    assert "source" not in {key.rpartition(".")[2] for key in origin}


def test_defaults_say_nothing_of_the_size_of_a_device():
    text = DEFAULTS.read_text()
    for key in ("capacity", "channels", "clock", "lanes"):
        assert f"{key}:" not in text
    assert "description" in set(paths(SystemSpec))


def test_importing_the_package_leaves_the_heavy_libraries_alone():
    heavy = "{'networkx', 'matplotlib', 'rich'}"
    code = f"import sys, kernbench.topology as t; t.load('tiny'); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
