"""What goes wrong, without a word, in the programs of the field that this package follows: one test a defect."""

import base64
import io
import pickle

import ml_dtypes
import numpy as np
import pytest
from test_weights_checkpoint import assert_same, train, write_checkpoint
from weights_cases import weight
from weights_disks import Stop, StoppingDisk
from weights_models import config, published

import kernbench.topology
from kernbench.runtime_api.context import RuntimeContext
from kernbench.weight_sync import blocksync
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.checkpoint_sync import (
    checkpoint_sync,
    diagnose,
    export_handles,
    recover,
    sync_file,
    verify,
    vllm_to_hf_tensors,
)
from kernbench.weight_sync.delta import DeltaWriter, WrongBaseError, write_delta
from kernbench.weight_sync.delta_apply import apply_delta, checkpoint_tensors, version_of
from kernbench.weight_sync.delta_read import DeltaReader
from kernbench.weight_sync.dtypes import wire_type
from kernbench.weight_sync.encodings import PIECE, Change
from kernbench.weight_sync.faults import Fault, LosingDisk, damage_file
from kernbench.weight_sync.layout_table import Experts
from kernbench.weight_sync.reshard import shard
from kernbench.weight_sync.safetensors import read_tensors, write_safetensors
from kernbench.weight_sync.serde import (
    EncodingRangeError,
    decode_from_http,
    decode_from_ipc,
    encode_for_http,
    encode_for_ipc,
)
from kernbench.weight_sync.snapshot import SnapshotError, load_snapshot, write_snapshot
from kernbench.weight_sync.transfer import ServedWeights, changed_weights

ROUTES = pytest.mark.parametrize(
    "encode, decode", [(encode_for_http, decode_from_http), (encode_for_ipc, decode_from_ipc)], ids=["http", "ipc"]
)
BF16 = ml_dtypes.bfloat16


def there_and_back(encode, decode, value, **options):
    return decode(encode("w", value, **options), framework="numpy")[1]


# Entries of weights.


@ROUTES
@pytest.mark.parametrize("number", [1e5, 3e38, -7e4, 65536])
def test_bf16_beyond_float16_became_infinite(encode, decode, number):
    value = np.array([1, number], BF16)
    with pytest.raises(EncodingRangeError, match=r"does not fit into float16 .* encoding=\"bits\""):
        encode("w", value)
    assert digest(there_and_back(encode, decode, value, encoding="bits")) == digest(value)


@ROUTES
@pytest.mark.parametrize(
    "bits", [0x0001, 0x31CE, 0x1E3C, 0x7FC1, 0xFFA5], ids=["subnormal", "6e-9", "1e-20", "nan", "nan2"]
)
def test_small_bf16_became_zero_and_nans_lost_their_payload(encode, decode, bits):
    value = np.array([bits], np.uint16).view(BF16)
    assert there_and_back(encode, decode, value, encoding="bits").tobytes() == value.tobytes()


@ROUTES
@pytest.mark.parametrize("kind", ["int32", "int16", "uint16", "float8_e4m3fn"])
def test_integers_came_as_zeros_and_fp8_not_at_all(encode, decode, kind):
    value = weight(kind, (5, 3))
    assert digest(there_and_back(encode, decode, value)) == digest(value) and np.count_nonzero(value.view(np.uint8))


@ROUTES
def test_empty_tensors_parameters_and_device_tensors_raised(encode, decode):
    torch = pytest.importorskip("torch")
    assert there_and_back(encode, decode, np.zeros((0, 3), np.float32)).shape == (0, 3)
    parameter = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)[:, ::2])
    assert digest(there_and_back(encode, decode, parameter)) == digest(parameter)
    with RuntimeContext.open(kernbench.topology.load("tiny")) as ctx:
        device = ctx.zeros((3, 2), dtype="f32")
        device.copy_(np.arange(6, dtype=np.float32).reshape(3, 2))
        assert (there_and_back(encode, decode, device) == np.arange(6).reshape(3, 2)).all()


@ROUTES
def test_entries_that_were_cut_off_or_damaged_passed(encode, decode):
    entry = encode("w", weight("float32", (40,)), encoding="bits")
    data = entry["data"]
    raw = bytearray(base64.b64decode(data) if isinstance(data, str) else data)
    for wrong in (raw[:-4], raw[:20] + bytes([raw[20] ^ 1]) + raw[21:]):
        made = base64.b64encode(wrong).decode() if isinstance(data, str) else bytes(wrong)
        with pytest.raises(ValueError, match=r"cut off|hash to"):
            decode(entry | {"data": made})


# Snapshots.


def parts(folder, seed=0, version=1):
    model = {f"w{i}": weight("bfloat16", (40,), seed=seed + i) for i in range(4)}
    return write_snapshot(folder, 0, "a", model, part_bytes=100, version=version)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_missing_part_was_not_noticed(tmp_path, manifest):
    files = parts(tmp_path)
    files[1].unlink()
    if not manifest:
        next(tmp_path.glob("*.manifest.json")).unlink()
    with pytest.raises((SnapshotError, FileNotFoundError), match="part2"):
        load_snapshot(tmp_path, 0, "a", lambda state, label: None, framework="numpy")


@pytest.mark.parametrize("manifest", [True, False])
def test_parts_of_two_snapshots_were_mixed(tmp_path, manifest):
    (tmp_path / "other").mkdir()
    files, others = parts(tmp_path), parts(tmp_path / "other", seed=50)
    files[2].write_bytes(others[2].read_bytes())
    if not manifest:
        next(tmp_path.glob("*.manifest.json")).unlink()
    came = []
    with pytest.raises(SnapshotError):
        load_snapshot(tmp_path, 0, "a", lambda state, label: came.append(label), framework="numpy")
    assert came == [], "headers are compared before anything is applied"


@pytest.mark.parametrize("step", range(4))
def test_a_snapshots_bytes_were_not_checked(tmp_path, step):
    path = write_snapshot(tmp_path, 0, "a", {"w": weight("bfloat16", (900,))}, version=1)[0]
    damage_file(path, Fault("corrupt", step))
    with pytest.raises(ValueError):
        load_snapshot(tmp_path, 0, "a", lambda state, label: None, framework="numpy")


def test_rank_1_of_id_234_was_rank_12_of_id_34(tmp_path):
    came = {}
    for rank, id in ((1, "234"), (12, "34")):
        write_snapshot(tmp_path, rank, id, {"w": np.full(3, rank)})
    for rank, id in ((1, "234"), (12, "34")):
        load_snapshot(tmp_path, rank, id, lambda state, label, r=rank: came.update({r: int(state["w"][0])}))
    assert came == {1: 1, 12: 12}


# Checkpoint sync.


@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3"], ids=["bf16", "fp8"])
def test_1_bf16_and_fp8_were_not_synced_and_it_said_no_changes(tmp_path, family):
    new = train(write_checkpoint(tmp_path, family))
    with export_handles([shard(new, config(family), 1, 0)], tmp_path / "h.json", tmp_path):
        done = checkpoint_sync(tmp_path, tmp_path / "h.json")
    assert done["total_changed"] > 0 and done["files_changed"] > 0
    assert_same(tmp_path, new)


@pytest.mark.parametrize(
    "live, error, says",
    [
        (np.ones((16, 4), np.float32), TypeError, "Type mismatch for w"),
        (np.ones((9, 16), np.float16), ValueError, "Shape mismatch for w"),
        (np.ones((16, 8), np.float16), ValueError, "Shape mismatch for w"),
    ],
    ids=["same bytes, other type", "other size", "same bytes, other shape"],
)
def test_2_and_3_another_type_or_size_was_written_or_counted_as_success(tmp_path, live, error, says):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": np.zeros((8, 16), np.float16)})
    before = path.read_bytes()
    with pytest.raises(error, match=says):
        sync_file(path, {"w": live})
    assert path.read_bytes() == before


def test_4_readers_of_a_mapped_file_saw_a_mixture(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": np.zeros(9000, np.float32)})
    mapped = np.memmap(path, np.uint8, "r")
    before = bytes(mapped)
    sync_file(path, {"w": np.ones(9000, np.float32)}, publish=True)
    assert bytes(mapped) == before and read_tensors(path, framework="numpy")["w"].all()


def test_5_a_crash_between_blocks_left_an_unnoticed_mixture(tmp_path):
    old, new = {"w": np.zeros(9000, np.float32)}, {"w": np.ones(9000, np.float32)}
    write_safetensors(tmp_path / "model.safetensors", old)
    blocksync.sync_files(tmp_path, {"model.safetensors": old})
    torn = 0
    for at in range(1000):
        disk = StoppingDisk(at, "middle")
        try:
            blocksync.sync_files(tmp_path, {"model.safetensors": new}, disk=disk)
            break
        except Stop:
            found = read_tensors(tmp_path / "model.safetensors", framework="numpy")["w"]
            if 0 < found.sum() < found.size:
                torn += 1
                assert not verify(tmp_path).ok, "a mixture is noticed"
            recover(tmp_path)
            assert verify(tmp_path).ok
            blocksync.sync_files(tmp_path, {"model.safetensors": old})
    assert torn


def test_5_damage_was_not_noticed_for_want_of_hashes(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"w": np.arange(9000, dtype=np.float32)})
    sync_file(tmp_path / "model.safetensors", {"w": np.ones(9000, np.float32)})
    assert verify(tmp_path).ok
    damage_file(tmp_path / "model.safetensors", Fault("corrupt", 9))
    assert verify(tmp_path).damaged == ["model.safetensors: w"]


def test_6_biases_and_fused_experts_got_wrong_names_and_axes():
    small = config("qwen2")
    rows = (small["num_attention_heads"] + 2 * small["num_key_value_heads"]) * small["head_dim"]
    named = vllm_to_hf_tensors({"model.layers.0.self_attn.qkv_proj.bias": weight("bfloat16", (rows,))}, small)
    assert set(named) == {f"model.layers.0.self_attn.{p}_proj.bias" for p in "qkv"}
    model = published("qwen3_5_moe")
    name = next(n for n in model if n.endswith("experts.gate_up_proj"))
    ranks = [shard(model, config("qwen3_5_moe"), 2, r, experts=Experts.FUSED) for r in range(2)]
    width = model[name].shape[1] // 2
    fused = next(w for n, w in ranks[1].items() if "experts.w13" in n or n.endswith("gate_up_proj"))
    assert digest(np.asarray(fused)[:, : width // 2]) == digest(model[name][:, width // 2 : width]), (
        "not of the experts"
    )


def test_7_names_of_published_multimodal_checkpoints_were_not_found(tmp_path, capsys):
    new = train(write_checkpoint(tmp_path, "qwen3_5"))
    with export_handles([shard(new, config("qwen3_5"), 1, 0)], tmp_path / "h.json", tmp_path):
        found = diagnose(tmp_path, tmp_path / "h.json")
        done = checkpoint_sync(tmp_path, tmp_path / "h.json")
    capsys.readouterr()
    assert found["only_hf"] == [] and done["tensors_missing"] == 0
    assert sum(n.startswith("model.language_model.layers.") for n in found["matched"]) > 10
    assert_same(tmp_path, new)


def test_8_sizes_were_constants_and_handles_were_pickles(tmp_path):
    new = train(write_checkpoint(tmp_path, "qwen3"))
    ranks = [shard(new, config("qwen3"), 2, rank) for rank in range(2)]
    with export_handles(ranks, tmp_path / "h.json", tmp_path):
        assert checkpoint_sync(tmp_path, tmp_path / "h.json")["tensors_synced"] == len(new)
    assert_same(tmp_path, new)
    (tmp_path / "h.pkl").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(PermissionError, match="allow it"):
        checkpoint_sync(tmp_path, tmp_path / "h.pkl")


def test_9_and_10_savings_were_claimed_without_counting():
    """What a change costs is counted, of the change at hand; how fast it is, benches measure."""
    old = {"w": np.zeros(1 << 20, np.uint16).view(BF16)}
    new = {"w": old["w"].copy()}
    new["w"].view(np.uint16)[::100] = 1  # one element in a hundred, everywhere
    costs = write_delta(None, old, new, every=True)
    assert costs.changed_elements == 10486 and costs.dirty_blocks == costs.blocks == 512
    assert costs.actual["block"] >= costs.actual["full"] > 20 * costs.actual["sparse"], "blocks save nothing here"
    assert costs.written <= min(costs.actual.values())


# Deltas.


def delta(old, new, *versions, **options):
    file = io.BytesIO()
    write_delta(file, old, new, *versions, **options)
    return file.getvalue()


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "model").mkdir()
    old = write_checkpoint(tmp_path / "model", "qwen3")
    return tmp_path / "model", old, train(old)


@pytest.mark.parametrize("encoding", ["auto", "sparse", "block", "full"])
def test_replaying_after_a_crash_undid_tensors_and_failed_for_ever(checkpoint, tmp_path, encoding):
    """An XOR that is applied twice is undone; here what is replayed are absolute bytes."""
    folder, old, new = checkpoint
    made, at, outcomes = delta(old, new, 0, 1, encoding=encoding), 0, set()
    while True:
        write_checkpoint(folder, "qwen3")
        disk = LosingDisk(tmp_path / f"shadow{at}", at, "middle")
        try:
            apply_delta(folder, io.BytesIO(made), disk=disk)
            break
        except Stop:
            disk.power_loss(at)
        recover(folder)
        recover(folder)
        state = version_of(folder)
        outcomes.add(state)
        assert_same(folder, new if state else old)
        if not state:
            apply_delta(folder, io.BytesIO(made))
            assert_same(folder, new)
        for left in folder.glob(".kernbench/*"):
            left.unlink() if left.is_file() else None
        at += 7
    assert outcomes == {0, 1}


def test_a_delta_for_another_base_was_applied(checkpoint):
    folder, old, new = checkpoint
    other = {name: np.array(w) for name, w in old.items()}
    next(iter(other.values())).view(np.uint8).reshape(-1)[0] ^= 1
    with pytest.raises(WrongBaseError):
        apply_delta(folder, io.BytesIO(delta(other, new, 0, 1)))
    assert_same(folder, old)


def test_the_baseline_went_ahead_of_what_receivers_had():
    """What is sent next is found by what a receiver serves, not by what a trainer believes to have sent."""
    versions = [{name: weight("bfloat16", (8,), seed=10 * v + i) for i, name in enumerate("abc")} for v in range(3)]
    one = ServedWeights({name: np.array(w) for name, w in versions[0].items()})
    step1 = versions[0] | {"a": versions[1]["a"]}
    one.start(base_version=0)
    one.load(changed_weights(step1.items(), one.digests()))
    one.abort()  # it never arrived
    step2 = step1 | {"b": versions[2]["b"]}
    changed = dict(changed_weights(step2.items(), one.digests()))
    assert sorted(changed) == ["a", "b"]
    one.start(base_version=0)
    one.load(changed.items())
    one.finish()
    assert one.digests() == {name: digest(w) for name, w in step2.items()}


def test_positions_wrapped_at_4_gibibytes():
    """Offsets of pieces are 64 bits wide, and within a piece nothing reaches 32."""
    assert PIECE < 1 << 32
    kind, far = wire_type("uint8"), (5 << 30) // PIECE * PIECE
    file = io.BytesIO()
    writer = DeltaWriter(file, 0, 1)
    writer.begin("w", kind, (far + PIECE,))
    writer.piece(far, Change(np.zeros(PIECE, np.uint8), np.ones(PIECE, np.uint8), 1))
    writer.end("0", "1")
    writer.finish({"w": "0"}, {"w": "1"})
    (tensor,) = list(_tensors(DeltaReader(io.BytesIO(file.getvalue()))))
    assert tensor == [("w", far)]


def _tensors(reader):
    for tensor in reader:
        yield [(tensor.name, patch.offset) for patch in tensor.patches()]


def test_the_applied_marker_was_ahead_of_the_data(checkpoint, tmp_path):
    """After a power loss right at the end, a version that is said to be there is there."""
    folder, old, new = checkpoint
    disk = LosingDisk(tmp_path / "shadow")
    apply_delta(folder, io.BytesIO(delta(old, new, 0, 1)), disk=disk)
    disk.power_loss(0)
    recover(folder)
    assert version_of(folder) == 1 and verify(folder).ok
    assert_same(folder, new)
    assert {n: digest(t.to("numpy")) for n, t in checkpoint_tensors(folder).items()} == {
        n: digest(w) for n, w in new.items()
    }
