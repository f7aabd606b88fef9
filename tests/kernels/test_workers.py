"""Threads of BLAS."""

import pytest

from kernbench.kernels import workers


def test_blas_has_one_thread_and_then_what_it_had():
    libraries = workers._blas().lib_controllers
    before = [library.get_num_threads() for library in libraries]
    assert libraries
    try:
        for library in libraries:
            library.set_num_threads(2)
        given = [library.get_num_threads() for library in libraries]
        with pytest.raises(ZeroDivisionError), workers.single_threaded_blas():
            assert [library.get_num_threads() for library in libraries] == [1] * len(libraries)
            raise ZeroDivisionError
        assert [library.get_num_threads() for library in libraries] == given
    finally:
        for library, threads in zip(libraries, before, strict=True):
            library.set_num_threads(threads)
