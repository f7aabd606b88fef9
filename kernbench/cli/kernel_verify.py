"""Are the values right: against the file's own ``reference``, or against Triton's interpreter on the same inputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kernbench.cli.kernel_descriptors import Described
from kernbench.cli.kernel_interpret import WIDENED, CannotInterpret, write_job
from kernbench.memory import dtype

TOLERANCE = {
    "f64": 1e-10,
    "f32": 1e-4,
    "f16": 1e-2,
    "bf16": 5e-2,
    "f8e4m3": 0.15,
    "f8e5m2": 0.3,
}
"""By element type of the array: relative to the value, and to the array's root mean square. Sums are ordered
differently on both sides, and values of narrow types are rounded at different places. Integers are compared exactly."""


@dataclass(frozen=True)
class Compared:
    """One array."""

    name: str
    elements: int
    wrong: int
    worst: float
    """Largest difference, in units of the tolerance."""
    first: str = ""
    """The first element that is wrong, and both values."""


@dataclass
class Verdict:
    """What a comparison says."""

    against: str
    """``reference``, ``interpreter``, or empty where nothing was compared."""
    reason: str = ""
    """Why nothing was compared, or what to know of the comparison."""
    arrays: list[Compared] = field(default_factory=list)

    @property
    def passed(self) -> bool | None:
        """None where nothing was compared."""
        return all(a.wrong == 0 for a in self.arrays) if self.against else None


def compare(name: str, got: np.ndarray, want: np.ndarray, inside: Sequence[str] = ()) -> Compared:
    """An array against what it should be; ``inside`` names element types that the kernel computes in."""
    kind = dtype(got.dtype).name
    limit = max((TOLERANCE[k] for k in (kind, *inside) if k in TOLERANCE), default=None) if kind in TOLERANCE else None
    if got.size != want.size:
        return Compared(name, got.size, got.size, np.inf, f"expected {want.size} elements, got {got.size}")
    got, want = got.reshape(-1), want.reshape(-1)
    if limit is None:
        bad, off = got != want, np.asarray(got != want, np.float64)
    else:
        a, b = got.astype(np.float64), want.astype(np.float64)
        finite = b[np.isfinite(b)]
        scale = float(np.sqrt(np.mean(finite**2))) if finite.size else 1.0
        with np.errstate(all="ignore"):
            off = np.abs(a - b) / (limit * (np.abs(b) + scale) + 1e-300)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        off = np.where(same, 0.0, np.where(np.isfinite(off), off, np.inf))
        bad = off > 1
    first = ""
    if bad.any():
        at = int(np.argmax(bad))
        shown = (str(x[at]) if limit is None else f"{x[at]:.8g}" for x in (got, want))
        first = f"element {at}: {' instead of '.join(shown)}"
    return Compared(name, got.size, int(bad.sum()), float(off.max(initial=0.0)), first)


def against_reference(
    reference: Any, before: Mapping[str, Any], after: Mapping[str, np.ndarray], inside: Sequence[str] = ()
) -> Verdict:
    """``reference(**arguments)`` returns what arrays should hold, as a dict by name, or one array for the only output.

    It is called with the parameters it names (or all, with ``**kwargs``), on the arrays as they were before the launch.
    """
    import inspect

    signature = inspect.signature(reference)
    anything = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    given = {
        n: v.copy() if isinstance(v, np.ndarray) else v
        for n, v in before.items()
        if anything or n in signature.parameters
    }
    made = reference(**given)
    if not isinstance(made, dict):
        outputs = [n for n, v in after.items() if _changed(before[n], v)]
        several = made if isinstance(made, tuple | list) else [made]
        if len(several) != len(outputs):
            return Verdict(
                "",
                f"reference() returned {len(several)} arrays, but the kernel wrote {len(outputs)} "
                f"({', '.join(outputs)}): return a dict by argument name",
            )
        made = dict(zip(outputs, several, strict=True))
    unknown = [n for n in made if n not in after]
    if unknown:
        return Verdict("", f"reference() returned '{unknown[0]}', which is no array argument of the kernel")
    return Verdict("reference", "", [compare(n, after[n], np.asarray(_numpy(v)), inside) for n, v in made.items()])


def _numpy(value: Any) -> Any:
    return value.detach().float().numpy() if hasattr(value, "detach") else value


def _changed(before: np.ndarray, after: np.ndarray) -> bool:
    return before.tobytes() != after.tobytes()


def against_interpreter(
    file: Path,
    kernel: str,
    grid: Sequence[int],
    before: Mapping[str, Any],
    after: Mapping[str, np.ndarray],
    inside: Sequence[str] = (),
    target: str = "",
    seconds: float = 60.0,
    described: Mapping[str, Described] | None = None,
) -> Verdict:
    """The same launch in Triton's interpreter, in another process.

    Args:
        file: where the kernel is.
        kernel: its name.
        grid: programs along each axis.
        before: all arguments (constexprs included) as they were.
        after: the arrays after the launch.
        inside: element types that the kernel computes in.
        target: the GPU that the file is told it runs on, empty for none.
        seconds: after which it is given up.
        described: the arrays that the kernel gets descriptors of.
    """
    widened = sorted({dtype(v.dtype).name for v in after.values()} & set(WIDENED))
    source = file.read_text(encoding="utf-8")
    if widened and ("bfloat16" in source or "float8" in source):
        return Verdict("", f"Triton's interpreter cannot compute in {widened[0]}, which the kernel names")
    with tempfile.TemporaryDirectory(prefix="kernbench-") as made:
        folder = Path(made)
        try:
            write_job(folder, file, kernel, grid, before, target, described or {})
        except CannotInterpret as no:
            return Verdict("", f"Triton's interpreter cannot be given this launch: {no}")
        command = [sys.executable, "-m", "kernbench.cli.kernel_interpret", str(folder)]
        environment = os.environ | {"TRITON_INTERPRET": "1", "KERNBENCH_IMPERSONATE": "", "PYTHONBREAKPOINT": "0"}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            return Verdict("", f"Triton's interpreter needs more than {seconds:.0f} s: use smaller sizes (--arg)")
        if (folder / "error.json").is_file():
            error = json.loads((folder / "error.json").read_text())["error"]
            return Verdict("", f"Triton's interpreter cannot run this kernel: {error.splitlines()[0][:200]}")
        if done.returncode or not (folder / "after.npz").is_file():
            return Verdict("", f"Triton's interpreter ended with code {done.returncode}: {done.stderr.strip()[-200:]}")
        with np.load(folder / "after.npz", allow_pickle=False) as stored:
            wanted = {n: stored[n] for n in stored.files}
    reason = f"in f32, because it cannot compute in {widened[0]}" if widened else ""
    return Verdict("interpreter", reason, [compare(n, after[n], wanted[n], inside) for n in sorted(wanted)])


def types_in(text: str) -> list[str]:
    """Narrow floating-point types that TTIR or Python source names."""
    spelt = {"f16": r"\bx?f16\b|xf16|float16|fp16", "bf16": "bf16|bfloat16", "f8e4m3": "f8E4M3|float8e4|float8_e4m3"}
    spelt["f8e5m2"] = "f8E5M2|float8e5|float8_e5m2"
    return [name for name, pattern in spelt.items() if re.search(pattern, text)]
