import pytest

from kernbench import bench
from kernbench.report import folder, units
from kernbench.report.tree import busiest_group, phase_tree

BENCH = """
def bench(ctx):
    with ctx.range("make"):
        x = ctx.ones((64, 64))
    with ctx.range("steady"):
        with ctx.range("multiply"):
            y = x @ x
        with ctx.range("add"):
            y = y + x
    return []
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "small.py"
    path.write_text(BENCH)
    return bench.run(path, "tiny")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (units.time(0), "0 ps"),
        (units.time(999), "999 ps"),
        (units.time(74_600_000), "74.6 us"),
        (units.time(1.5e12), "1.50 s"),
        (units.size(1023), "1023 B"),
        (units.size(58.7 * 2**20), "58.7 MiB"),
        (units.rate(2.97e12, "B/s"), "2.97 TB/s"),
        (units.rate(12, "B/s"), "12.0 B/s"),
        (units.percent(0.004), "<1 %"),
        (units.percent(0.0), "0 %"),
        (units.percent(0.856), "86 %"),
    ],
)
def test_numbers_for_people(text, want):
    assert text == want


def test_phases_nest_and_a_group_spans_its_parts(run):
    tree = phase_tree(run.timeline)
    assert [node.name for node in tree] == ["make", "steady"]
    steady = busiest_group(tree)
    assert steady is tree[1]
    assert [child.name for child in steady.children] == ["multiply", "add"]
    assert steady.start_ps == min(child.start_ps for child in steady.children)
    assert steady.span_ps == max(child.finish_ps for child in steady.children) - steady.start_ps
    assert [depth for depth, _ in steady.walk()] == [0, 1, 1]


def test_runs_are_numbered(run, tmp_path):
    assert folder.write(run, tmp_path)["record"].parent.name == "small-001"
    assert folder.write(run, tmp_path)["record"].parent.name == "small-002"


def test_a_crash_while_writing_leaves_no_folder(run, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(folder, "write_trace", broken)
    with pytest.raises(OSError, match="disk full"):
        folder.write(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_rest_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    written = folder.write(run, tmp_path)
    assert any("kernbench[plot]" in what for what in written)
    assert written["record"].exists()
