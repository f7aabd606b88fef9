"""A weight sync on a simulated machine, before the real one is booked: its time, what bounds it, and its values."""

from kernbench.weight_sync.simulate.bounds import Bound, device_bound, host_bound
from kernbench.weight_sync.simulate.model import LLAMA_3_1_8B, Model
from kernbench.weight_sync.simulate.outcome import Outcome
from kernbench.weight_sync.simulate.run import ENGINES, Trial, simulate, trial
from kernbench.weight_sync.simulate.sync import HOST, Roles, Settings

__all__ = [
    "ENGINES",
    "HOST",
    "LLAMA_3_1_8B",
    "Bound",
    "Model",
    "Outcome",
    "Roles",
    "Settings",
    "Trial",
    "device_bound",
    "host_bound",
    "simulate",
    "trial",
]
