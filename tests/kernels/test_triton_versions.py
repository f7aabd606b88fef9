"""What kernels rely on, under the oldest supported Triton and one in between, each in a process of its own.

The installed version has the rest of the suite. Of Liger's operators each version gets one element type; kernels that
compute while they communicate take too long to run three times.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton_versions as versions

ROOT = Path(__file__).parents[2]
FILES = [
    "test_triton_backend",
    "test_tutorials",
    "test_tutorials_gemm",
    "test_tutorials_in_context",
    "test_flash_attention",
    "test_language",
    "test_language_block_pointers",
    "test_language_descriptors",
    "test_sanitize_checks",
    "test_liger",
    "test_dumps",
    "test_interpreted",
]
LIGER = {"3.4.0": "f16", "3.7.1": "bf16"}
RUN = """
import sys, pytest, triton
assert triton.__version__ == sys.argv[1], triton.__version__
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def running():
    """The processes, both started before the first is waited for."""
    started = {}
    for version in versions.VERSIONS:
        if versions.folder(version).is_dir():
            files = [*(f"tests/kernels/{name}.py" for name in FILES), "tests/language/test_device_communication.py"]
            chosen = f"(not test_operator or -{LIGER[version]}]) and not test_fused_kernels"
            started[version] = subprocess.Popen(
                [sys.executable, "-c", RUN, version, "-p", "no:cacheprovider", "-k", chosen, *files],
                cwd=ROOT,
                env=versions.environment(version),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("version", versions.VERSIONS)
def test_development_set(running, version):
    if version not in running:
        pytest.skip(
            f"Triton {version} is not in {versions.folder(version)}: `make versions` installs it, or says why not"
        )
    output = running[version].communicate()[0]
    assert running[version].returncode == 0, output
    (passed,) = re.findall(r"(\d+) passed", output) or ["0"]
    assert int(passed) > 150, output
