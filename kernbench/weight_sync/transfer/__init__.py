"""Weight transfer engines: trainers hand new weights to inference workers, over one way or another.

An engine moves tensors (:mod:`.base`); a session makes them visible, all at once or not at all (:mod:`.session`).
Engines are made by name, and their modules imported only then::

    engine = WeightTransferEngineFactory.create_engine("broadcast", config, parallel_config)
"""

from kernbench.weight_sync.transfer.base import (
    LoadWeights,
    TensorListInfo,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateInfo,
    WeightTransferUpdateRequest,
    describe_weights,
)
from kernbench.weight_sync.transfer.factory import WeightTransferEngineFactory
from kernbench.weight_sync.transfer.session import ServedWeights, WeightUpdater, changed_weights

__all__ = [
    "LoadWeights",
    "ServedWeights",
    "TensorListInfo",
    "WeightTransferEngine",
    "WeightTransferEngineFactory",
    "WeightTransferInitInfo",
    "WeightTransferInitRequest",
    "WeightTransferUpdateInfo",
    "WeightTransferUpdateRequest",
    "WeightUpdater",
    "changed_weights",
    "describe_weights",
]

_HERE = "kernbench.weight_sync.transfer."
for _name, _module, _class in (
    ("broadcast", "broadcast", "BroadcastWeightTransferEngine"),
    ("disk", "disk", "DiskWeightTransferEngine"),
    ("ipc", "ipc", "IpcWeightTransferEngine"),
    ("http", "http", "HttpWeightTransferEngine"),
    ("p2p", "p2p", "P2PWeightTransferEngine"),
):
    WeightTransferEngineFactory.register_engine(_name, _HERE + _module, _class)
