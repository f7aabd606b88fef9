import ml_dtypes
import numpy as np
import pytest
import torch

from kernbench.memory import dtype

NAMES = {
    "f64": ("float64", torch.float64, np.float64),
    "f32": ("float32", torch.float32, np.float32),
    "f16": ("float16", torch.float16, np.float16),
    "bf16": ("bfloat16", torch.bfloat16, ml_dtypes.bfloat16),
    "f8e4m3": ("float8_e4m3fn", torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
    "f8e5m2": ("float8_e5m2", torch.float8_e5m2, ml_dtypes.float8_e5m2),
    "i64": ("int64", torch.int64, np.int64),
    "i32": ("int32", torch.int32, np.int32),
    "i16": ("int16", torch.int16, np.int16),
    "i8": ("int8", torch.int8, np.int8),
    "u8": ("uint8", torch.uint8, np.uint8),
    "u16": ("uint16", torch.uint16, np.uint16),
    "i1": ("bool", torch.bool, np.bool_),
}


@pytest.mark.parametrize("short", NAMES)
def test_every_name_means_the_same_type(short):
    long, of_torch, of_numpy = NAMES[short]
    found = dtype(short)
    for spec in (long, f"torch.{long}", of_torch, of_numpy, np.dtype(of_numpy), found):
        assert dtype(spec) is found
    assert str(found) == str(of_torch)
    assert found.itemsize == of_torch.itemsize
    assert found.is_floating_point == of_torch.is_floating_point
    assert found.bits == (1 if short == "i1" else 8 * of_torch.itemsize)


def test_narrow_floats_are_carried_in_float32():
    assert {dtype(name).carrier for name in ("f32", "f16", "bf16", "f8e4m3", "f8e5m2")} == {np.dtype(np.float32)}
    assert dtype("f64").carrier == np.float64
    assert dtype("i8").carrier == np.int8


@pytest.mark.parametrize("spec", ["f17", "complex64", torch.complex64, object(), None])
def test_unknown_types_list_the_known_ones(spec):
    with pytest.raises(TypeError, match=r"unknown dtype .*: expected one of f64, f32, f16"):
        dtype(spec)
