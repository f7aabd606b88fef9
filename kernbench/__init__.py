"""KernBench: a simulator of multi-device AI accelerators that gives right values and simulated time at once."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kernbench")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
