"""The runtime that reads like torch: tensors, devices, streams, ranks, collectives."""
