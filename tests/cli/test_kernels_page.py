"""docs/kernels.md shows what its file and its program print, and the tolerances that hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernbench.cli import main
from kernbench.cli.kernel_verify import TOLERANCE

PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
FILE, PROGRAM = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def lines(text):
    """What does not change with the cost model."""
    return [re.sub(r"[\d.,]+|\b[KM]iB|\b[nu]s\b", "#", line).split() for line in text.splitlines() if line.strip()]


def test_the_command_prints_what_is_shown(monkeypatch, capsys, tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "add.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    block = PAGE[PAGE.index("    $ kernbench") : PAGE.index("\n\nThe exit code")]
    command, _, output = block.replace("\n    ", "\n").lstrip(" $").partition("\n")
    monkeypatch.setattr("sys.argv", command.split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert sorted(lines(printed)) == sorted(lines(output))
    assert re.findall(r"written (\w+)", printed) == re.findall(r"written (\w+)", output)


def test_the_program_runs(tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "add.py").write_text(FILE)
    (tmp_path / "page.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["[2048.", "2049.", "2050.", "2051.]", "5000.0"], done.stderr


def test_the_tolerances():
    table = PAGE[PAGE.index("| f64 | f32") :].split("\n\n")[0].splitlines()
    head, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    shown = dict(zip(head, row, strict=True))
    assert shown.pop("integers") == "exact"
    assert {name: float(text) for name, text in shown.items()} == TOLERANCE
