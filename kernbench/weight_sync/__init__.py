"""Weight synchronisation: weights as bytes on wires, on disk and in the memory of other processes.

Nothing here imports torch, safetensors or a web server before a function needs it.
"""
