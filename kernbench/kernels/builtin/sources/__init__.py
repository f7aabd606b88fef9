"""Triton sources of the built-in kernels. Needs Triton; only regenerating the store imports these."""
