"""Lowers a kernel as far as TTIR, whose text is the interface between Triton and KernBench."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import triton.backends.compiler as base
from triton._C.libtriton import ir, passes

from kernbench.kernels.errors import KernelError
from kernbench.kernels.kernel import Kernel
from kernbench.kernels.triton_backend import NAME, gpus, impersonated

_DEFAULTS: dict[str, Any] = {
    "num_stages": 3,
    # Read by Triton's front end.
    "supported_fp8_dtypes": ("fp8e4b15", "fp8e4b8", "fp8e4nv", "fp8e5", "fp8e5b16"),
    "deprecated_fp8_dtypes": (),
    "deprecated_fp8_dot_operand_dtypes": (),
    "default_dot_input_precision": "ieee",
    "allowed_dot_input_precisions": ("ieee", "tf32", "tf32x3", "bf16x3", "bf16x6"),
    "max_num_imprecise_acc_default": 0,
    "sanitize_overflow": None,
    "debug": False,
    "backend_name": NAME,
    "arch": "ttir",
    "extern_libs": (),
    "instrumentation_mode": "",
    # Advice to GPUs that kernels and autotune configurations carry: accepted, without effect here.
    "num_warps": 4,
    "num_ctas": 1,
    "warp_size": 1,
    "cluster_dims": (1, 1, 1),
    "maxnreg": None,
    "num_buffers_warp_spec": 0,
    "num_consumer_groups": 0,
    "reg_dec_producer": 0,
    "reg_inc_consumer": 0,
    "ptx_version": None,
    "ptx_options": None,
    "ir_override": None,
    "enable_fp_fusion": False,
    "enable_reflect_ftz": True,
    "launch_cooperative_grid": False,
    "launch_pdl": False,
    "fpsan_homomorphic_casts": False,
    "min_shared_mem": None,
    "sched4reg": False,
    "clc": False,
    "waves_per_eu": 0,
    "matrix_instr_nonkdim": 0,
    "kpack": 1,
    "schedule_hint": "none",
}


class Options:
    """Compile options; an attribute each, because Triton looks for an option's name in ``__dict__``."""

    num_stages: int

    def __init__(self, given: dict[str, Any]) -> None:
        known = {name: given[name] for name in _DEFAULTS if given.get(name) is not None}
        self.__dict__.update(_DEFAULTS | known)
        if given.get("sanitize_overflow") is None:
            self.__dict__["sanitize_overflow"] = self.__dict__["debug"]  # asserts are left out without ``debug``

    def hash(self) -> str:
        return "_".join(f"{name}-{value}" for name, value in sorted(self.__dict__.items()))


def to_ttir(module: Any) -> Any:
    """Triton's own clean-up of TTIR, as its GPU backends do it, without rewriting descriptors into pointers."""
    manager = ir.pass_manager(module.context)
    manager.enable_debug()
    passes.common.add_inliner(manager)
    passes.common.add_canonicalizer(manager)
    passes.ttir.add_combine(manager)
    passes.ttir.add_reorder_broadcast(manager)
    passes.common.add_cse(manager)
    passes.common.add_symbol_dce(manager)
    passes.ttir.add_loop_unroll(manager)
    try:
        manager.run(module, "make_ttir")
    except TypeError:  # Triton 3.4 has no name for a pipeline
        manager.run(module)
    return module


def scratchpad(text: str, num_stages: int) -> int:
    """Bytes of scratchpad that a program needs; 0 for one that cannot run, which its launch then refuses."""
    try:
        return Kernel("", text, num_stages, shares=True).tcm.nbytes
    except KernelError:
        return 0


class KernBenchBackend(base.BaseBackend):
    """Stages: ``ttir`` (a module), then ``kernbench`` (its text as bytes)."""

    binary_ext = "kernbench"

    @staticmethod
    def supports_target(target: Any) -> bool:
        return target.backend == NAME or bool(impersonated)

    def hash(self) -> str:
        # Triton's disk cache keeps a target with each kernel, so kernels of different targets must not be mixed up.
        return f"{NAME}-ttir-3-{self.target.backend}-{self.target.arch}"

    def parse_options(self, options: dict) -> Options:
        made = Options(options)
        warps = made.__dict__["num_warps"]
        if self.target.backend != NAME and (warps < 1 or warps & (warps - 1)):
            raise AssertionError(f"num_warps={warps} must be a power of 2")  # what Triton raises for a GPU
        return made

    def add_stages(self, stages: dict, options: Options, language: Any = None) -> None:
        if language is not None and language.name != "TRITON":
            raise NotImplementedError("KernBench runs triton.language kernels: rewrite this Gluon kernel with tl")

        def finish(module: Any, metadata: dict) -> bytes:
            text = str(module)
            metadata["name"] = module.get_entry_func_name()
            # Host code written for GPUs divides what a GPU has by it, and expects at least 1. The limit is the
            # machine's scratchpad, which a launch checks.
            metadata["shared"] = 0
            if self.target.backend == "cuda":
                metadata["shared"] = min(scratchpad(text, options.num_stages), gpus.shared_memory(self.target.arch))
            return text.encode()

        stages["ttir"] = lambda module, metadata: to_ttir(module)
        stages["kernbench"] = finish

    def load_dialects(self, context: Any) -> None:
        """TTIR needs no dialects of its own."""

    def get_module_map(self) -> dict[str, ModuleType]:
        from triton.language.extra.cuda import libdevice

        return {"triton.language.extra.libdevice": libdevice}

    def get_codegen_implementation(self, options: Options) -> dict[str, Any]:
        from triton.language.extra.cuda import convert_custom_float8_sm80

        return {"convert_custom_types": convert_custom_float8_sm80, "min_dot_size": lambda lhs, rhs: (1, 1, 1)}

    def pack_metadata(self, metadata: Any) -> tuple[int]:
        return (metadata.num_stages,)
