"""Transfer engines: the contract's classes and words, the factory, and sessions that show nothing before finish."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from weights_cases import weight

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.transfer import (
    ServedWeights,
    TensorListInfo,
    WeightTransferEngine,
    WeightTransferEngineFactory,
    WeightTransferInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateInfo,
    WeightTransferUpdateRequest,
    WeightUpdater,
    changed_weights,
    describe_weights,
    session,
)


class ListEngine(WeightTransferEngine[WeightTransferInitInfo, TensorListInfo]):
    """Hands over what its config holds, one tensor a call."""

    init_info_cls = WeightTransferInitInfo
    update_info_cls = TensorListInfo

    def init_transfer_engine(self, init_info):
        pass

    def receive_weights(self, update_info, load_weights):
        for pair in self.config:
            update_info.checked(load_weights)([pair])

    def shutdown(self):
        pass

    @staticmethod
    def trainer_send_weights(iterator, trainer_args):
        raise NotImplementedError


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(WeightTransferEngineFactory, "_registry", dict(WeightTransferEngineFactory._registry))
    return WeightTransferEngineFactory


def new(seed, names=("a", "b"), kind="bfloat16"):
    return {name: weight(kind, (3, 8), seed=100 * seed + i) for i, name in enumerate(names)}


def same(one, other):
    return {n: digest(t) for n, t in one.items()} == {n: digest(t) for n, t in other.items()}


def copies(weights):
    return {name: np.array(w) for name, w in weights.items()}


def test_requests_and_infos_are_what_the_contract_says():
    assert WeightTransferInitRequest(init_info={"x": 1}).init_info == {"x": 1}
    assert WeightTransferUpdateRequest(update_info={"x": 1}).update_info == {"x": 1}
    assert WeightTransferUpdateInfo().is_checkpoint_format is True
    assert WeightTransferUpdateInfo(is_checkpoint_format=False).is_checkpoint_format is False
    with pytest.raises(TypeError):
        WeightTransferUpdateInfo(False)
    with pytest.raises(TypeError):
        WeightTransferEngine()


def test_a_bad_dictionary_names_the_class():
    engine = ListEngine([])
    with pytest.raises(ValueError, match=r"Invalid init_info for ListEngine: .*'nonsense'"):
        engine.parse_init_info({"nonsense": 1})
    with pytest.raises(ValueError, match=r"Invalid update_info for ListEngine: .*missing 3"):
        engine.parse_update_info({})
    with pytest.raises(ValueError, match="Invalid update_info for ListEngine: unknown element type 'f7'"):
        engine.parse_update_info({"names": ["a"], "dtype_names": ["f7"], "shapes": [[]]})


def test_update_information_has_lists_of_one_length():
    with pytest.raises(ValueError, match=r"`dtype_names` should be of the same size as `names`: got 1 and 2"):
        TensorListInfo(["a", "b"], ["bfloat16"], [[1], [2]])
    with pytest.raises(ValueError, match=r"`shapes` should be of the same size as `names`: got 3 and 1"):
        TensorListInfo(["a"], ["bfloat16"], [[], [], []])
    with pytest.raises(ValueError, match="'a' twice"):
        TensorListInfo(["a", "a"], ["bfloat16"] * 2, [[], []])
    assert TensorListInfo([], [], []).metadata == []


def test_a_sender_stops_where_it_leaves_what_it_announced():
    weights = list(new(1).items())
    info = TensorListInfo(**describe_weights(weights))
    assert list(info.check_sent(iter(weights))) == weights
    for wrong, says in (
        ([("a", weights[0][1]), ("c", weights[1][1])], r"'c' \(bfloat16 \[3, 8\]\) where .*'b' \(bfloat16 \[3, 8\]\)"),
        ([("a", weights[0][1].astype(np.float32))], r"'a' \(float32 .*announced 'a' \(bfloat16"),
        (weights[:1], r"end before 'b'"),
        ([*weights, ("c", np.zeros(1))], r"announced nothing more"),
    ):
        with pytest.raises(ValueError, match=says):
            list(info.check_sent(iter(wrong)))


def test_the_factory_makes_engines_by_name(registry):
    registry.register_engine("list", ListEngine)
    engine = registry.create_engine("list", "config", "parallel")
    assert isinstance(engine, ListEngine) and (engine.config, engine.parallel_config) == ("config", "parallel")
    with pytest.raises(ValueError, match="'list' is already registered"):
        registry.register_engine("list", ListEngine)
    with pytest.raises(
        ValueError, match=r"Invalid weight transfer backend: x\. Available engines: \['broadcast'.*'list'\]"
    ):
        registry.create_engine("x", None, None)
    with pytest.raises(ValueError, match="class_name is required"):
        registry.register_engine("other", "some.module")


def test_a_module_is_imported_when_its_engine_is_made(registry):
    registry.register_engine("lazy", "no.such.module", "Engine")
    with pytest.raises(ModuleNotFoundError):
        registry.create_engine("lazy", None, None)
    code = """if 1:
        import sys, kernbench.weight_sync.transfer as t
        heavy = ['torch', 'http.server', 'http.client', 'kernbench.weight_sync.transfer.broadcast']
        assert not [m for m in heavy if m in sys.modules]
        t.WeightTransferEngineFactory.create_engine('broadcast', None, None)
        assert heavy[-1] in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Sessions.


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_nothing_is_visible_before_finish(framework):
    if framework == "torch":
        pytest.importorskip("torch")
    params = {n: weight("bfloat16", (3, 8), framework, seed=i) for i, n in enumerate("ab")}
    served, before, fresh = ServedWeights(params), ServedWeights(params).digests(), new(1)
    assert served.start() == 1 and served.updating == 1
    served.load([("a", fresh["a"])])
    served.load([("b", fresh["b"])])
    assert served.digests() == before and served.version == 0
    fresh["a"].view(np.uint16)[:] = 0  # the sender reuses its memory
    assert served.finish({n: digest(t) for n, t in new(1).items()}) == 1
    assert served.version == 1 and served.updating is None
    assert all(served.params[n] is params[n] for n in params), "written in place"
    assert same(params, new(1))


def test_versions_only_rise():
    served = ServedWeights(new(0), version=5)
    for version in (5, 4, -1, "6", True):
        with pytest.raises(ValueError, match="does not rise above 5"):
            served.start(version)
    assert served.start(9) == 9
    with pytest.raises(RuntimeError, match="already active"):
        served.start(10)
    served.abort()
    served.abort()
    assert served.start() == 6


@pytest.mark.parametrize(
    "bad, error, says",
    [
        (("c", weight("bfloat16", (3, 8))), KeyError, "does not have"),
        (("a", weight("float16", (3, 8))), TypeError, "Type mismatch for a"),
        (("a", weight("bfloat16", (8, 3))), ValueError, "Shape mismatch for a"),
        (("b", weight("bfloat16", (3, 8), seed=77)), ValueError, "'b' comes twice"),
    ],
)
def test_a_failed_load_leaves_the_old_version(bad, error, says):
    params = copies(new(0))
    served = ServedWeights(params)
    served.start()
    served.load([("b", new(1)["b"])])
    with pytest.raises(error, match=says):
        served.load([bad])
    with pytest.raises(RuntimeError, match="No weight update is active"):
        served.finish()
    assert served.version == 0 and same(params, new(0))


def test_a_half_finished_session_leaves_the_old_version():
    params = copies(new(0))
    served = ServedWeights(params)
    for digests, says in (
        (None, "lacks 1 of 2 parameters, the first is 'b'"),
        ({"b": "0" * 32}, "'b' has not arrived"),
    ):
        served.start()
        served.load([("a", new(1)["a"])])
        with pytest.raises(ValueError, match=says):
            served.finish(digests)
        assert served.version == 0 and served.updating is None and same(params, new(0))


def test_finish_compares_every_hash():
    params, fresh = copies(new(0)), new(1)
    served = ServedWeights(params)
    right = {n: digest(t) for n, t in fresh.items()}
    for wrong, says in ((right | {"b": right["a"]}, "it was damaged"), ({"a": right["a"]}, "'b' has arrived")):
        served.start()
        served.load(fresh.items())
        served.load(fresh.items())  # a repeated request
        with pytest.raises(ValueError, match=says):
            served.finish(wrong)
        assert same(params, new(0))


@pytest.mark.parametrize("failing", ["callback", "copy"])
def test_a_finish_that_fails_takes_everything_back(failing, monkeypatch):
    params = copies(new(0, "abcd"))
    if failing == "copy":  # which is for parameters that are no single piece of memory
        params = {name: np.asfortranarray(w) for name, w in params.items()}

    def fail(version):
        assert same(params, new(version, "abcd"))
        raise OSError("cache cannot be dropped")

    served = ServedWeights(params, on_finish=fail if failing == "callback" else None)
    served.start()
    served.load(new(1, "abcd").items())
    if failing == "copy":
        left, real = [7], session.copy_into

        def copy(target, source):
            left[0] -= 1
            real(target, source)
            if not left[0]:
                raise OSError("cache cannot be dropped")

        monkeypatch.setattr(session, "copy_into", copy)
    with pytest.raises(OSError, match="cache"):
        served.finish()
    assert served.version == 0 and same(params, new(0, "abcd"))


@pytest.mark.parametrize("at", range(8))
def test_a_signal_in_the_middle_of_a_swap_takes_it_back(at, monkeypatch):
    """Stops at every one of the four steps that a piece takes, in the first and in a later piece."""
    left = [at]

    class Stopping(np.ndarray):
        def __getitem__(self, part):
            stop()
            return super().__getitem__(part)

        def __setitem__(self, part, values):
            stop()
            super().__setitem__(part, values)

    def stop():
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "_PIECE", 4)
    one, other = np.arange(10, dtype=np.uint8), np.arange(50, 60, dtype=np.uint8)
    with pytest.raises(KeyboardInterrupt):
        session._swap(one.view(Stopping), other.view(Stopping))
    assert (one == np.arange(10)).all() and (other == np.arange(50, 60)).all()
    session._swap(one, other)
    assert (other == np.arange(10)).all() and (one == np.arange(50, 60)).all()


def test_memory_that_is_given_away_is_staged_as_it_is():
    params = copies(new(0))
    served, fresh = ServedWeights(params, place=lambda name, w: [("a", (), w), ("b", (), w)]), new(1)
    served.start()
    served.load([("a", fresh["a"])], owned=True)
    served.finish()
    assert digest(params["a"]) == digest(params["b"]) == digest(new(1)["a"]), "one tensor for two is copied"
    served.place = session._same_name
    served.start()
    served.load(fresh.items(), owned=True)
    served.finish()
    assert same(params, new(1)) and not same(fresh, new(1)), "the old values are where the new ones came in"


def test_a_late_message_does_not_get_into_the_next_update():
    served = ServedWeights(copies(new(0)))
    served.start(1)
    served.abort()
    served.start(2)
    with pytest.raises(RuntimeError, match="tensors of version 1 came while 2 is being loaded"):
        served.load(new(1).items(), version=1)
    served.load(new(2).items(), version=2)
    assert served.finish() == 2 and same(served.params, new(2))


def test_parts_of_a_parameter_are_all_there_or_nothing_is():
    whole, zeros = weight("float32", (4, 6)), np.zeros((4, 6), np.float32)

    def place(name, tensor):
        if name != "ignored":
            yield "fused", (slice(0, 2) if name == "top" else slice(2, 4),), tensor

    served = ServedWeights({"fused": zeros}, place=place)
    served.start()
    served.load([("top", whole[:2]), ("ignored", whole)])
    with pytest.raises(ValueError, match="'fused' is incomplete: 12 of 24"):
        served.finish()
    assert not zeros.any()
    served.start()
    served.load([("top", whole[:2]), ("bottom", whole[2:])])
    served.finish()
    assert digest(zeros) == digest(whole)
    served.start()
    with pytest.raises(ValueError, match="a part of the parameter 'fused' comes twice"):
        served.load([("bottom", whole[2:]), ("bottom again", whole[2:])])


def test_parameters_in_their_own_format_are_not_placed():
    served = ServedWeights({"p": np.zeros(3)}, place=lambda name, tensor: [])
    served.start()
    served.load([("p", np.ones(3))], is_checkpoint_format=False)
    served.finish()
    assert served.params["p"].all()


def test_an_update_of_what_has_changed_names_its_base():
    params, fresh = copies(new(0)), {"a": new(0)["a"], "b": new(1)["b"]}
    served = ServedWeights(params, version=3)
    with pytest.raises(ValueError, match="changes version 2, but 3 is being served"):
        served.start(4, base_version=2)
    served.start(4, base_version=3)
    changed = dict(changed_weights(fresh.items(), served.digests()))
    assert list(changed) == ["b"]
    served.load(changed.items())
    assert served.finish() == 4 and same(params, fresh)


def test_odd_tensors_are_staged_too():
    params = {"scalar": np.zeros((), np.float32), "none": np.zeros((0, 3), np.int8), "flag": np.zeros(3, np.bool_)}
    served = ServedWeights(params)
    served.start()
    fresh = {"scalar": np.float32(2.5), "none": np.zeros((0, 3), np.int8), "flag": np.array([True, False, True])}
    served.load(fresh.items())
    served.finish()
    assert same(params, fresh)


def test_readers_see_one_version_only():
    params = {"a": np.zeros(50_000), "b": np.zeros(50_000)}
    served, torn, stop = ServedWeights(params), [], threading.Event()

    def read():
        while not stop.is_set():
            with served.reading() as weights:
                values = {float(w[i]) for w in weights.values() for i in (0, -1)}
            torn.extend([values] if len(values) > 1 else [])

    readers = [threading.Thread(target=read) for _ in range(3)]
    for one in readers:
        one.start()
    for version in range(1, 30):
        served.start(version)
        served.load((name, np.full(50_000, float(version))) for name in params)
        served.finish(timeout=20)
    stop.set()
    for one in readers:
        one.join()
    assert not torn and served.version == 29


def test_a_reader_that_stays_stops_the_update_not_the_worker():
    served = ServedWeights(copies(new(0)))
    served.start()
    served.load(new(1).items())
    with served.reading() as weights:
        with pytest.raises(TimeoutError, match="1 readers"):
            served.finish(timeout=0.01)
        assert same(weights, new(0))
    with served.reading():
        pass


def test_an_engine_and_weights_together():
    params, fresh = copies(new(0)), new(1)
    updater = WeightUpdater(ListEngine(list(fresh.items())), ServedWeights(params))
    info = describe_weights(fresh.items())
    updater.init_weight_transfer_engine({})
    with pytest.raises(RuntimeError, match="No weight update is active"):
        updater.update_weights(info)
    assert updater.start_weight_update(7) == 7
    updater.update_weights(info)
    assert same(params, new(0))
    assert updater.finish_weight_update() == 7 and same(params, fresh)


@pytest.mark.parametrize("info", [{}, describe_weights(new(2).items())])
def test_an_engine_that_fails_ends_the_session(info):
    params = copies(new(0))
    updater = WeightUpdater(ListEngine(list(new(1).items())), ServedWeights(params))
    updater.start_weight_update()
    with pytest.raises(ValueError, match=r"Invalid update_info|'a' arrived damaged"):
        updater.update_weights(info)
    with pytest.raises(RuntimeError, match="No weight update is active"):
        updater.finish_weight_update()
    assert updater.served.version == 0 and same(params, new(0))
