"""Dividing things over ranks, as Megatron does."""

from __future__ import annotations

from kernbench.runtime_api.tensor import Tensor


def ensure_divisibility(numerator: int, denominator: int) -> None:
    """Raise AssertionError unless ``denominator`` divides ``numerator``."""
    if numerator % denominator:
        raise AssertionError(f"{numerator} is not divisible by {denominator}")


def divide(numerator: int, denominator: int) -> int:
    """The quotient of two numbers that divide without remainder; AssertionError otherwise."""
    ensure_divisibility(numerator, denominator)
    return numerator // denominator


def split_tensor_along_last_dim(
    tensor: Tensor, num_partitions: int, contiguous_split_chunks: bool = False
) -> tuple[Tensor, ...]:
    """Equal parts of the last axis, as views or, where asked, as contiguous copies."""
    parts = tensor.split(divide(tensor.shape[-1], num_partitions), dim=tensor.ndim - 1)
    return tuple(part.contiguous() for part in parts) if contiguous_split_chunks else parts
