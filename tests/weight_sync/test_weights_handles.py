import gc
import json
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from kernbench.runtime_api.tensor import Tensor
from kernbench.weight_sync import handles
from kernbench.weight_sync.checkpoint_sync import checkpoint_sync, export_handles
from kernbench.weight_sync.handles import WeightsChangedError, load_handles


def segments():
    return set(handles._folder().glob("kernbench-*"))


def test_another_process_reads_and_sees_updates(tmp_path):
    weights = {"w": torch.arange(6.0).reshape(2, 3).bfloat16(), "f8": torch.ones(4).to(torch.float8_e4m3fn)}
    code = (
        "import sys\n"
        "from kernbench.weight_sync.handles import load_handles\n"
        f"found = load_handles({str(tmp_path / 'h.json')!r}).ranks[0]\n"
        "assert not found['w'].flags.owndata and not found['w'].flags.writeable\n"
        "print(found['w'].dtype, found['f8'].dtype, flush=True)\n"
        "sys.stdin.readline()\n"
        "print(found['w'].astype('f4').tolist(), flush=True)\n"
    )
    with export_handles(weights, tmp_path / "h.json", tmp_path) as export:
        reader = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout.readline().split() == ["bfloat16", "float8_e4m3fn"]
        with export.updating() as mine:
            mine["w"][1, 2] = 9
        out, _ = reader.communicate("go\n", timeout=60)
        assert out.strip() == "[[0.0, 1.0, 2.0], [3.0, 4.0, 9.0]]" and reader.returncode == 0
        assert weights["w"][1, 2] == 5  # the exporter's own tensor is another one
        assert load_handles(tmp_path / "h.json").model_dir == tmp_path


def test_every_kind_of_tensor(tmp_path):
    nan = np.array([0x7FC1, 0xFFA3], np.uint16).view(ml_dtypes.bfloat16)
    weights = {
        "strided": np.arange(12.0).reshape(3, 4).T,
        "scalar": np.float32(2),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "context": Tensor((2, 2), "f16"),
        "bool": np.array([True, False]),
        "nan": nan,
    }
    with export_handles(weights, tmp_path / "h.json", tmp_path):
        found = load_handles(tmp_path / "h.json").ranks[0]
    assert np.array_equal(found["strided"], weights["strided"]) and found["scalar"] == 2
    assert found["empty"].shape == (0, 3) and found["parameter"].tolist() == [1, 1, 1]
    assert found["context"].shape == (2, 2) and found["bool"].tolist() == [True, False]
    assert found["nan"].tobytes() == nan.tobytes()


def test_shared_memory_is_shared_once(tmp_path):
    embedding = torch.zeros(1000, 8)
    with export_handles({"a": embedding, "b": embedding, "c": embedding.clone()}, tmp_path / "h.json", tmp_path) as e:
        assert e.tensors["a"].data_ptr() == e.tensors["b"].data_ptr() != e.tensors["c"].data_ptr()


def test_nothing_is_left_behind(tmp_path):
    before = segments()
    export = export_handles({"a": np.zeros(3)}, tmp_path / "h.json", tmp_path)
    mapped = load_handles(tmp_path / "h.json").ranks[0]["a"]
    assert len(segments() - before) == 2
    export.close()
    export.close()
    del export
    gc.collect()
    assert segments() == before and not (tmp_path / "h.json").exists() and mapped.sum() == 0
    code = "import sys; from kernbench.weight_sync.handles import export_handles; import numpy as np, os\n"
    code += f"export_handles({{'a': np.ones(3)}}, {str(tmp_path / 'h.json')!r}, '.')\n"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert segments() == before
    subprocess.run([sys.executable, "-c", code + "os.kill(os.getpid(), 9)"], check=False)
    assert len(segments() - before) == 2  # a killed exporter cannot tidy up: the next one to this file does
    export_handles({"a": np.ones(3)}, tmp_path / "h.json", tmp_path).close()
    assert segments() == before


def test_ranks_and_refresh(tmp_path):
    ranks = [{"w": np.full(3, r)} for r in range(2)]
    with export_handles(ranks, tmp_path / "h.json", tmp_path) as export:
        export.refresh([{"w": np.full(3, 5)}, {"w": np.full(3, 6)}])
        assert [r["w"][0] for r in load_handles(tmp_path / "h.json").ranks] == [5, 6]
        with pytest.raises(ValueError, match="cannot copy"):
            export.refresh([{"w": np.zeros(4, int)}, {}])


def test_refused_exports_leave_nothing(tmp_path):
    before = segments()
    a = np.zeros(1)
    for wrong in ([{"a": a}, {}], [{}, {"a": a}], [], [{"a": a}, {"a": "text"}], {"__metadata__": a}):
        with pytest.raises((ValueError, TypeError)):
            export_handles(wrong, tmp_path / "h.json", tmp_path)
    with pytest.raises(FileNotFoundError):
        export_handles({"a": a}, tmp_path / "gone" / "h.json", tmp_path)
    assert segments() == before


def test_weights_that_change_meanwhile(tmp_path):
    with export_handles({"w": np.zeros(3)}, tmp_path / "h.json", tmp_path) as export:
        found = load_handles(tmp_path / "h.json")
        since = found.version()
        found.check_unchanged(since)
        with export.updating(), pytest.raises(WeightsChangedError):
            found.check_unchanged(found.version())
        with pytest.raises(WeightsChangedError):
            found.check_unchanged(since)


def test_files_that_are_no_handles(tmp_path):
    path = tmp_path / "h.json"
    with pytest.raises(FileNotFoundError, match="Weight handles not found"):
        load_handles(path)
    with pytest.raises(FileNotFoundError, match="Weight handles not found"):
        checkpoint_sync(tmp_path, path)
    for text in ("{}", "{", '{"__metadata__": 3}', '{"__metadata__": {"format": "x"}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"h\.json"):
            load_handles(path)
    with export_handles({"w": np.zeros(3)}, path, tmp_path):
        whole = json.loads(path.read_text())
        for key, value in (
            ("offset", 8),
            ("offset", -1),
            ("shape", [4]),
            ("shape", [-1]),
            ("segment", "../../etc/passwd"),
            ("dtype", "torch.float128"),
        ):
            path.write_text(json.dumps({**whole, "w": [{**whole["w"][0], key: value}]}))
            with pytest.raises(ValueError, match=r"h\.json|float128"):
                load_handles(path)
        path.write_text(json.dumps(whole))
    path.write_text(json.dumps(whole))
    with pytest.raises(FileNotFoundError, match="Has the exporter ended"):
        load_handles(path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_only_when_asked(tmp_path, monkeypatch):
    path = tmp_path / "h.pkl"
    path.write_bytes(pickle.dumps({"w": Evil(tmp_path / "ran")}))
    with pytest.raises(PermissionError, match="allow"):
        load_handles(path)
    with pytest.raises(ValueError, match="does not"):
        load_handles(path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()
    from torch.multiprocessing import reductions

    def opened(*arguments):
        assert arguments[1] == torch.Size([2]) and arguments[4] == torch.bfloat16
        return torch.ones(2, dtype=torch.bfloat16)

    arguments = (torch.Tensor, torch.Size([2]), (1,), 0, torch.bfloat16, 0)
    handle = (reductions.rebuild_cuda_tensor, arguments)
    path.write_bytes(pickle.dumps({"__metadata__": {"model_path": "/m"}, "w": handle}))
    with pytest.raises(ValueError, match="handle of 'w' cannot be opened"):
        load_handles(path, allow_pickle=True)
    opened.__module__, opened.__qualname__ = reductions.__name__, "rebuild_cuda_tensor"
    monkeypatch.setattr(reductions, "rebuild_cuda_tensor", opened)
    found = load_handles(path, allow_pickle=True)
    assert found.ranks[0]["w"].dtype == torch.bfloat16 and found.model_dir == Path("/m")
