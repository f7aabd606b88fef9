"""A bf16 and an fp8 model go from serving ranks to a checkpoint, all of it, proven by hashes in processes apart."""

import json
import subprocess
import sys

import pytest
from safetensors import safe_open
from test_weights_checkpoint import train, write_checkpoint
from weights_models import config

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.checkpoint_sync import export_handles, verify
from kernbench.weight_sync.reshard import shard

KERNBENCH = [sys.executable, "-m", "kernbench.weight_sync"]
READER = """
import json, sys
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.handles import load_handles
from kernbench.weight_sync.modelconfig import ModelConfig
from kernbench.weight_sync.reshard import gather
live = gather(load_handles(sys.argv[2]).ranks, ModelConfig.of_folder(sys.argv[1]))
print(json.dumps({name: digest(one.tensor()) for name, one in live.items()}))
"""


def run(*command, code=0):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def on_disk(folder):
    """Hashes of a checkpoint as the safetensors library reads it."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: digest(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("family, tp", [("qwen3", 4), ("qwen3_fp8", 2), ("deepseek_v3", 2)])
def test_a_whole_model_arrives(tmp_path, family, tp):
    folder, handles = tmp_path / "model", tmp_path / "handles.json"
    folder.mkdir()
    model = write_checkpoint(folder, family)
    kinds = {str(t.dtype) for t in model.values()}
    assert kinds == ({"bfloat16"} if family == "qwen3" else {"bfloat16", "float8_e4m3fn", "float32"})
    new = train(model)
    wanted = {name: digest(t) for name, t in new.items()}
    assert sum(wanted[n] != d for n, d in on_disk(folder).items()) == len(range(0, len(model), 3))
    with export_handles([shard(new, config(family), tp, r) for r in range(tp)], handles, folder):
        where = ["--model-dir", folder, "--handles", handles, "--json"]
        done = run(*KERNBENCH, "sync", *where)
        assert (done["tensors_synced"], done["tensors_missing"]) == (len(model), 0)
        live = run(sys.executable, "-c", READER, folder, handles)
        assert run(*KERNBENCH, "verify", *where)["tensors"] == len(model)
        assert on_disk(folder) == live == wanted
        one = next(p for p in folder.glob("*.safetensors") if b"lm_head" in p.read_bytes()[:20000])
        data = bytearray(one.read_bytes())
        data[-1] ^= 1
        one.write_bytes(data)
        assert len(verify(folder).damaged) == 1
