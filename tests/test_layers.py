"""Imports go down the layers only: a package may import the packages before it in this list, never those after."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kernbench

LAYERS = [
    "_native",
    "topology",
    "sim_engine",
    "memory",
    "kernels",
    "language",
    "policy",
    "ccl",
    "runtime_api",
    "triton",
    "tp",
    "weight_sync",
    "bench",
    "report",
    "cli",
    "pytest_plugin",
]
ROOT = Path(kernbench.__file__).parent
HEAVY = ["triton", "torch", "matplotlib", "networkx", "pydantic", "rich", "typer"]


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "kernbench" and len(parts) > 1 else None


def _imports(path: Path) -> list[tuple[int, str]]:
    """(line, absolute module) of every import in a file, those inside functions too."""
    package = ["kernbench", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.append((node.lineno, module))
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def _violations(path: Path) -> list[str]:
    own = _room("kernbench." + ".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own not in LAYERS:
        return []
    bad = []
    for line, module in _imports(path):
        other = _room(module)
        if other in LAYERS and LAYERS.index(other) > LAYERS.index(own):
            bad.append(f"{path.relative_to(ROOT.parent)}:{line}: {own} imports {other}, which lies above it")
    return bad


FILES = sorted(ROOT.rglob("*.py"))


def test_every_package_has_a_layer():
    rooms = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in FILES} - {"__init__", "__main__"}
    assert rooms <= set(LAYERS), f"give these a place in LAYERS: {sorted(rooms - set(LAYERS))}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    assert _violations(path) == []


def test_the_check_can_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "topology").mkdir()
    upward = tmp_path / "topology" / "graph.py"
    upward.write_text("def f():\n    from kernbench.runtime_api import context\n")
    assert "topology imports runtime_api" in _violations(upward)[0]


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, kernbench; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
