"""A launch in Triton's interpreter, in a process of its own: Triton decides how kernels run when it is imported.

Run as ``python -m kernbench.cli.kernel_interpret FOLDER``: reads ``job.json`` and ``before.npz`` there, and leaves
``after.npz`` or ``error.json``. The parent writes the folder with :func:`write_job`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kernbench.cli.kernel_descriptors import Described
from kernbench.memory import dtype

WIDENED = ("bf16", "f8e4m3", "f8e5m2")
"""Element types that the interpreter computes wrongly on; it is given f32 instead."""


class CannotInterpret(Exception):
    """The interpreter cannot be given this launch."""


def write_job(
    folder: Path,
    file: Path,
    kernel: str,
    grid: Sequence[int],
    args: Mapping[str, Any],
    target: str,
    described: Mapping[str, Described] = MappingProxyType({}),
) -> None:
    """Store a launch. ``args`` are all arguments, constexprs included; ``described`` those that become descriptors.

    Raises:
        CannotInterpret: an argument that no file can hold, such as a function.
    """
    arrays: dict[str, np.ndarray] = {}
    numbers: dict[str, Any] = {}
    for name, value in args.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value.astype(np.float32) if dtype(value.dtype).name in WIDENED else value
        elif value is None or isinstance(value, bool | int | float | str):
            numbers[name] = value
        elif type(value).__module__ == "triton.language.core" and hasattr(value, "name"):
            numbers[name] = {"dtype": str(value)}
        else:
            raise CannotInterpret(f"argument '{name}' is a {type(value).__name__}")
    job = {"file": str(file.resolve()), "kernel": kernel, "grid": list(grid), "numbers": numbers, "target": target}
    job["described"] = {n: asdict(d) for n, d in described.items()}
    (folder / "job.json").write_text(json.dumps(job))
    np.savez(folder / "before.npz", **arrays)  # type: ignore[arg-type]


def main(folder: Path) -> None:
    """Run the job of a folder."""
    import triton.language as tl

    from kernbench.cli import kernel_files as files
    from kernbench.kernels.standalone import StandaloneDevice

    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "before.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    args: dict[str, Any] = dict(arrays)
    for name, parts in job["described"].items():
        import torch  # the interpreter takes no other tensors in a descriptor

        args[name] = Described(**parts).around(torch.from_numpy(arrays[name]))
    for name, value in job["numbers"].items():
        args[name] = getattr(tl, _language_name(value["dtype"])) if isinstance(value, dict) else value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _belief(job["target"]), StandaloneDevice():
            path = Path(job["file"])
            kernel = files.function_of(files.choose(path, files.definitions(path), job["kernel"]))
            kernel[tuple(job["grid"])](**args)
    np.savez(folder / "after.npz", **arrays)


def _language_name(short: str) -> str:
    names = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64", "fp8e4nv": "float8e4nv"}
    return names.get(short, {"fp8e5": "float8e5"}.get(short, short.replace("i", "int") if short[:1] == "i" else short))


def _belief(target: str) -> Any:
    from contextlib import nullcontext

    from kernbench.triton import impersonate

    return impersonate(target) if target else nullcontext()


def show(folder: Path) -> None:
    """Print what the job left in its arrays."""
    with np.load(folder / "before.npz") as before, np.load(folder / "after.npz") as after:
        for name in after.files:
            changed = before[name].tobytes() != after[name].tobytes()
            print(f"{name}: {dtype(after[name].dtype).name}{list(after[name].shape)}{' written' if changed else ''}")
            if changed:
                print(np.array2string(after[name], threshold=64, edgeitems=3))


if __name__ == "__main__":
    where = Path(sys.argv[1])
    try:
        main(where)
        if "--show" in sys.argv:
            show(where)
    except Exception as error:
        cause = error.__cause__ or error
        if type(cause).__name__ == "BdbQuit":
            sys.exit(0)
        if "--show" in sys.argv:
            import traceback

            traceback.print_exception(cause)
        (where / "error.json").write_text(json.dumps({"error": f"{type(cause).__name__}: {cause}"}))
        sys.exit(1)
