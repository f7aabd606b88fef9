"""What the README shows is true: its programs run, its machine loads, its commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kernbench.topology
from kernbench.weight_sync.commands import app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language, text=TEXT):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_the_programs_run(tmp_path):
    pytest.importorskip("triton")
    assert len(blocks("python")) == 2
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks("python")))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"device='ahbm:0'.*\n[\d.]+ ms\n\d+ ps\n", done.stdout, re.S), done.stdout


def test_the_machine_loads(tmp_path):
    (text,) = blocks("yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert len(text.splitlines()) <= 10
    assert kernbench.topology.load(path).n_sips == 8


def test_files_and_targets_exist():
    make = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", TEXT)):
        assert f"\n{target}:" in make
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.S)
    for path in re.findall(r"(?:\]\(|kernbench run )((?!http|-)[\w/.-]+)", prose):
        assert (ROOT / path).exists(), path


@pytest.mark.skipif(sys.platform != "linux", reason="the page's shared memory and /proc are Linux")
def test_the_page_on_weights_shows_what_its_program_prints(tmp_path):
    page = (ROOT / "docs" / "weight-sync.md").read_text()
    (program,) = blocks("python", page)
    (tmp_path / "page.py").write_text(program)
    done = subprocess.run([sys.executable, "-u", "page.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = re.search(r"from its journal:\n\n(.*?)\n\n##", page, re.S)
    assert [line.strip() for line in shown[1].splitlines()] == [line.strip() for line in done.stdout.splitlines()]
    (commands,) = blocks("bash", page)  # they go on where the program has ended
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", commands], cwd=tmp_path, capture_output=True, text=True, check=True, env=env)
    assert "version 2: 14 tensors as they should be" in done.stdout and "every hash as it should be" in done.stdout
    listed = re.search(r"`python -m kernbench.weight_sync COMMAND`:\n(.*?)\. `--json`", page, re.S)
    assert {command.name or command.callback.__name__ for command in app.registered_commands} >= set(
        re.findall(r"`(\w+)`", listed[1])
    )


def test_the_page_on_communication_shows_what_its_program_prints(tmp_path):
    pytest.importorskip("triton")
    page = (ROOT / "docs" / "device-communication.md").read_text()
    (program,) = blocks("python", page)
    (tmp_path / "page.py").write_text(program)
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = re.search(r"It prints\n\n(.*?)\n\n##", page, re.S)
    assert [line.strip() for line in shown[1].splitlines()] == [line.strip() for line in done.stdout.splitlines()]
