"""Pickled files of CUDA IPC handles, as serving engines' export hooks write them; see ``load_handles(allow_pickle=)``.

The pickle is a dictionary: tensor name -> what ``torch.multiprocessing.reductions.reduce_tensor`` gives for a CUDA
tensor, and ``__metadata__`` with ``model_path``. Only what such a file needs is looked up; that narrows what a
malicious file can do, but is no proof against one.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from kernbench.weight_sync.handles import METADATA, Handles

_ALLOWED = {
    ("torch.multiprocessing.reductions", "rebuild_cuda_tensor"),
    ("torch", "Size"),
    ("torch", "Tensor"),
    ("torch", "UntypedStorage"),
    ("torch.storage", "UntypedStorage"),
    ("torch.storage", "TypedStorage"),
    ("torch.nn.parameter", "Parameter"),
    ("collections", "OrderedDict"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in _ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it needs {module}.{name}, which a file of CUDA handles does not")


def load_pickled(path: Path, data: bytes) -> Handles:
    """The tensors of a pickled handle file; each is opened on the GPU that holds it.

    Raises:
        ValueError: no such file; or a handle cannot be opened here (another machine, no GPU, exporter gone).
    """
    try:
        document = _Unpickler(io.BytesIO(data)).load()
    except Exception as wrong:
        raise ValueError(f"{path}: no pickled file of CUDA handles: {wrong}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a pickled dictionary of handles, found {type(document).__name__}")
    about = document.pop(METADATA, {})
    tensors = {}
    for name, handle in document.items():
        try:
            rebuild, arguments = handle
            tensors[name] = rebuild(*arguments)
        except Exception as wrong:
            raise ValueError(f"{path}: the handle of '{name}' cannot be opened in this process: {wrong}") from None
    model = about.get("model_path") if isinstance(about, dict) else None
    return Handles([tensors], Path(model) if model else None, lambda: 0)
