"""Decisions that a record leaves open: where tensors lie, which PE runs a program, over which channels and routes."""
