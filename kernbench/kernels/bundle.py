"""A kernel in a file: TTIR text under one comment line that says what the text does not.

Such a file runs wherever KernBench does, without Triton. It is itself valid TTIR, and TTIR from elsewhere (Triton's
cache holds ``.ttir`` files) can be read as well.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernbench.kernels.kernel import Kernel

MARK = "// kernbench.ttir/1 "
SUFFIX = ".ttir"


class BundleError(ValueError):
    """A file that holds no kernel, or a kernel that cannot be stored."""


def write(path: str | Path, kernel: Kernel, made_by: str = "") -> None:
    """Store a kernel, byte for byte the same on every run; ``made_by`` names the compiler's version."""
    about = {
        "name": kernel.name,
        "num_stages": kernel.num_stages,
        "args": list(kernel.arg_names),
        "constexprs": {
            k: v if isinstance(v, int | float | str | None) else str(v) for k, v in kernel.constexprs.items()
        },
        "made_by": made_by,
    }
    Path(path).write_text(MARK + json.dumps(about) + "\n" + kernel.text, encoding="utf-8")


def read(path: str | Path) -> Kernel:
    """The kernel in a file.

    Raises:
        BundleError: there is no such file, or it is not TTIR.
        KernelError: the TTIR does not parse.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8")
    first, _, rest = text.partition("\n")
    if first.startswith(MARK):
        about = json.loads(first.removeprefix(MARK))
        return Kernel(about["name"], rest, about["num_stages"], about["constexprs"], names=tuple(about["args"]))
    if "tt.func" not in text:
        raise BundleError(f"{path}: holds no TTIR (no tt.func): make one with `kernbench kernel export FILE.py:kernel`")
    kernel = Kernel(path.stem, text)
    return Kernel(kernel.function.name, text)


def lower(function: Any, signature: Mapping[str, str], constexprs: Mapping[str, Any], num_stages: int = 3) -> Kernel:
    """Compile a ``@triton.jit`` function for given argument types. Needs Triton.

    Args:
        function: the function.
        signature: Triton's type of every argument that is not a constexpr: ``*fp32``, ``i32``, ``fp32`` ... A type
            may end in ``:16``, which promises a multiple of 16.
        constexprs: the compile-time arguments.
        num_stages: buffer slots of pipelined loads.

    Raises:
        BundleError: an argument has no type or one that Triton does not know, or a name is not one of the function's.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kernbench.kernels.triton_backend import NAME, driver

    names: Sequence[str] = function.arg_names
    unknown = [n for n in (*signature, *constexprs) if n not in names]
    missing = [n for n in names if n not in signature and n not in constexprs]
    if unknown or missing:
        raise BundleError(
            f"{function.__name__}({', '.join(names)}): "
            + "; ".join(
                text
                for text, some in (
                    (f"no such argument: {', '.join(unknown)}", unknown),
                    (f"no type or value for {', '.join(missing)}", missing),
                )
                if some
            )
        )
    kinds, hints = {}, {}
    for i, name in enumerate(names):
        kind, _, multiple = signature.get(name, "constexpr").partition(":")
        kinds[name] = kind
        if not _is_type(kind) or not (multiple or "16").isdecimal():
            raise BundleError(
                f"{function.__name__}: argument '{name}' has the type '{signature[name]}', which Triton does not know: "
                "expected one such as *fp32, *bf16, *fp8e5, *i64, i32, u8, fp32, with :16 behind it for a multiple of "
                "16; a constexpr has a value instead"
            )
        if multiple:
            hints[(i,)] = [["tt.divisibility", int(multiple)]]
    driver.register()
    source = ASTSource(function, kinds, dict(constexprs), hints)
    made = triton.compile(source, target=GPUTarget(NAME, "ttir", 1), options={"num_stages": num_stages})
    given = tuple(driver.runtime_names(names, list(kinds.values())))
    return Kernel(made.metadata.name, made.asm[NAME].decode(), num_stages, dict(constexprs), names=given)


def _is_type(kind: str) -> bool:
    """Whether Triton knows a type of an argument by this name."""
    import triton.language as tl

    try:
        tl.str_to_ty(kind, None) if len(inspect.signature(tl.str_to_ty).parameters) > 1 else tl.str_to_ty(kind)
    except (KeyError, ValueError, IndexError, AttributeError, AssertionError):
        return False
    return True
