"""The http engine on loopback: octet-streams and JSON, many requests at once, limits, tokens, and what goes wrong."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
from weights_cases import NAMES, SHAPES, weight

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.frames import encode_frames
from kernbench.weight_sync.serde import encode_for_http
from kernbench.weight_sync.transfer import ServedWeights, WeightTransferEngineFactory, WeightUpdater, describe_weights
from kernbench.weight_sync.transfer.http_client import HttpTransferError
from kernbench.weight_sync.transfer.http_server import Limits, WeightServer

httpx = pytest.importorskip("httpx", reason="the tests' own client")
Engine = WeightTransferEngineFactory.engine_class("http")
OCTETS = {"content-type": "application/octet-stream"}


def new(seed, names="abcdef", kind="bfloat16"):
    return {name: weight(kind, (64, 8), seed=100 * seed + i) for i, name in enumerate(names)}


def zeros(weights):
    return {name: np.zeros_like(w) for name, w in weights.items()}


def digests(weights):
    return {name: digest(w) for name, w in weights.items()}


def stream(weights):
    return b"".join(bytes(piece) for piece in encode_frames(weights.items()))


@pytest.fixture
def serve():
    """``serve(weights, **options)``: a server of zeros in the shape of ``weights``."""
    servers = []

    def serve(weights, **options):
        served = ServedWeights(zeros(weights))
        servers.append(WeightServer(served, **options))
        return served, servers[-1].url

    yield serve
    for server in servers:
        server.close()


def send(weights, *urls, **options):
    return Engine.trainer_send_weights(iter(weights.items()), {"urls": list(urls), "timeout": 20} | options)


def post(url, path, body=b"", **options):
    response = httpx.post(f"{url}/{path}", content=body, timeout=20, **options)
    return response.status_code, response.json()


@pytest.mark.parametrize("form", ["octet-stream", "json", "auto"])
def test_every_type_and_shape_arrives_bit_for_bit(serve, form):
    weights = {f"{n}.{i}": weight(n, s, seed=i) for n in NAMES for i, s in enumerate(SHAPES)}
    served, url = serve(weights)
    assert send(weights, url, form=form, batch_bytes=4000) == 1
    assert served.digests() == digests(weights) and served.version == 1


@pytest.mark.parametrize("session", [False, True])
def test_trainers_of_the_field_send_json(serve, session):
    """Entries as they make them, with and without a session; bfloat16 comes as float16."""
    weights = {"a": np.arange(32, dtype=np.float32), "b": np.ones((2, 4), weight("bfloat16", ()).dtype)}
    served, url = serve(weights)
    if session:
        assert post(url, "start_weight_update", b'{"version": 5}') == (200, {"version": 5})
    for name, tensor in weights.items():
        body = json.dumps({"params": [encode_for_http(name, tensor)]})
        status, answer = post(url, "http_update_weights/", body.encode())
        assert status == 200 and answer["tensors"] == 1
        assert served.params["a"].any() != session, "a request outside of a session is one of its own"
    if session:
        assert post(url, "finish_weight_update") == (200, {"version": 5})
    assert served.digests() == digests(weights) and served.version == (5 if session else 2)


def test_requests_without_a_session_follow_one_another(serve):
    weights = new(1, [f"w{i}" for i in range(30)], "float32")
    served, url = serve(weights)

    def one(pair):
        return post(url, "http_update_weights/", json.dumps({"params": [encode_for_http(*pair)]}).encode())[0]

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(one, weights.items())) == {200}
    assert served.version == 30 and served.digests() == digests(weights)


def test_a_server_of_the_field_gets_json(monkeypatch, serve):
    """One that knows nothing but http_update_weights/."""
    weights = {"a": np.arange(32, dtype=np.float32)}
    served, url = serve(weights)
    from kernbench.weight_sync.transfer import http_client

    monkeypatch.setattr(http_client._Replica, "_about", lambda self: None)
    assert send(weights, url) == 1 and served.digests() == digests(weights)
    with pytest.raises(HttpTransferError, match="takes no octet-streams"):
        send(weights, url, form="octet-stream")


def test_replicas_get_all_or_show_nothing(serve):
    weights = new(1)
    good, other = serve(weights), serve(weights)
    assert send(weights, good[1], other[1], version=3, batch_bytes=2000, concurrent=3) == 3
    assert [s.version for s, _ in (good, other)] == [3, 3] and other[0].digests() == digests(weights)
    lacking = serve(new(1, "abc"))
    with pytest.raises(HttpTransferError, match=r"400, KeyError: .*'d' goes to the parameter 'd', which this worker"):
        send(new(2), good[1], lacking[1])
    assert good[0].version == 3 and good[0].digests() == digests(weights) and good[0].updating is None
    assert lacking[0].version == 0 and lacking[0].updating is None


def test_a_trainer_that_fails_gives_the_update_up(serve):
    served, url = serve(new(1))

    def broken():
        yield "a", new(1)["a"]
        raise OSError("disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        Engine.trainer_send_weights(broken(), {"urls": [url], "batch_bytes": 1})
    assert served.updating is None and served.version == 0 and not any(w.any() for w in served.params.values())


def test_an_update_of_what_has_changed(serve):
    served, url = serve(new(1))
    send(new(1), url)
    send({"c": new(2)["c"]}, url, base_version=1)
    assert served.digests() == digests(new(1) | {"c": new(2)["c"]})
    with pytest.raises(HttpTransferError, match="changes version 1, but 2 is being served"):
        send({"c": new(3)["c"]}, url, base_version=1)


def test_requests_at_once_all_arrive(serve):
    weights = new(1, [f"w{i}" for i in range(40)])
    served, url = serve(weights, limits=Limits(concurrent=3))
    post(url, "start_weight_update")
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda pair: post(url, "update_weights?version=1", stream(dict([pair])), headers=OCTETS),
                [*weights.items(), *weights.items()],
            )
        )
    assert {a for a, _ in answers} == {200}
    assert post(url, "finish_weight_update", json.dumps({"digests": digests(weights)}).encode())[0] == 200
    assert served.digests() == digests(weights)


def test_too_many_requests_are_told_to_come_again(serve):
    weights = new(1, "ab")
    _, url = serve(weights, limits=Limits(concurrent=1, waiting=0))
    post(url, "start_weight_update")
    going, gate = threading.Event(), threading.Event()

    def slow():
        data = stream({"a": weights["a"]})
        yield data[:20]
        going.set()
        gate.wait(20)
        yield data[20:]

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, "update_weights", slow(), headers=OCTETS)
        going.wait(20)
        while (response := httpx.post(f"{url}/update_weights", content=b"", headers=OCTETS)).status_code != 503:
            pass
        assert response.headers["retry-after"] == "1"
        gate.set()
        assert first.result()[0] == 200
    assert post(url, "update_weights", stream({"b": weights["b"]}), headers=OCTETS)[0] == 200


def test_a_server_that_decodes_slowly_holds_the_sender_back(serve):
    """64 MiB are on offer; while nothing is loaded, the sender gets rid of what buffers hold, and no more."""
    weights = {f"w{i}": np.full(1 << 20, i, np.uint8) for i in range(64)}
    served, url = serve(weights)
    gate, real, sent = threading.Event(), served.load, [0]
    served.load = lambda pairs, **options: (gate.wait(20), real(pairs, **options))
    post(url, "start_weight_update")

    def body():
        for piece in encode_frames(weights.items()):
            sent[0] += len(piece)
            yield bytes(piece)

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(post, url, "update_weights", body(), headers=OCTETS)
        last = -1
        while sent[0] != last or not sent[0]:  # until nothing moves any more
            last = sent[0]
            gate.wait(0.2)
        assert 0 < sent[0] < 40 << 20
        gate.set()
        assert going.result() == (200, {"tensors": 64})
    assert post(url, "finish_weight_update")[0] == 200 and served.digests() == digests(weights)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}])
def test_who_has_no_token_is_turned_away(serve, headers):
    served, url = serve(new(1), token="secret")
    for path in ("start_weight_update", "update_weights", "http_update_weights/", "abort_weight_update", "nothing"):
        assert post(url, path, headers=headers)[0] == 401
    assert httpx.get(f"{url}/weight_info", headers=headers).status_code == 401
    with pytest.raises(HttpTransferError, match="401"):
        send(new(1), url)
    assert served.updating is None
    assert send(new(1), url, token="secret") == 1


def test_a_server_that_others_reach_needs_a_token():
    with pytest.raises(ValueError, match=r"anybody who reaches 0\.0\.0\.0 could replace"):
        WeightServer(ServedWeights({}), "0.0.0.0")


def test_what_is_too_large_is_refused_before_memory_is_taken(serve):
    weights = {"a": np.zeros(5000, np.uint8)}
    limits = Limits(request_bytes=4000, json_bytes=3000, tensor_bytes=1000)
    _, url = serve(weights, limits=limits)
    post(url, "start_weight_update")
    data, as_json = stream(weights), json.dumps({"params": [encode_for_http("a", weights["a"])]}).encode()
    assert post(url, "update_weights", data, headers=OCTETS)[0] == 413
    assert post(url, "update_weights", iter([data]), headers=OCTETS)[0] in (400, 413), "without a length"
    assert post(url, "update_weights", as_json, headers={"content-type": "application/json"})[0] == 413
    assert post(url, "http_update_weights/", iter([as_json]))[0] == 413
    status, answer = post(url, "update_weights", stream({"a": np.zeros(2000, np.uint8)}), headers=OCTETS)
    assert status == 400 and "takes 2000 bytes, more than the 1000 allowed" in answer["error"]
    huge = stream({"a": np.zeros(0, np.uint8)}).replace(b'"shape":[0]', b'"shape":[9999999999]')
    assert post(url, "update_weights", huge, headers=OCTETS)[0] == 400


@pytest.mark.parametrize(
    "path, body, headers, status, says",
    [
        ("update_weights", b"", OCTETS, 409, "No weight update is active"),
        ("finish_weight_update", b"", {}, 409, "No weight update is active"),
        ("finish_weight_update", b'{"version": 4}', {}, 409, "No weight update is active"),
        ("update_weights", b"", {"content-type": "text/plain"}, 415, "text/plain"),
        ("start_weight_update", b'{"version": 0}', {}, 400, "does not rise"),
        ("start_weight_update", b"[1]", {}, 400, "expected a JSON object"),
        ("start_weight_update", b"{", {}, 400, "JSONDecodeError"),
        ("http_update_weights/", b"{}", {}, 400, "params"),
        ("http_update_weights/", b'{"params": [3]}', {}, 400, "has no"),
    ],
)
def test_nonsense_is_refused_with_a_reason(serve, path, body, headers, status, says):
    served, url = serve(new(1))
    got, answer = post(url, path, body, headers=headers)
    assert got == status and says in answer["error"]
    assert served.updating is None and served.version == 0


def test_a_late_request_does_not_go_into_the_next_update(serve):
    _, url = serve(new(1))
    post(url, "start_weight_update", b'{"version": 2}')
    status, answer = post(url, "update_weights?version=1", stream(new(1)), headers=OCTETS)
    assert status == 409 and "for version 1, the update under way is to 2" in answer["error"]
    assert post(url, "abort_weight_update") == (200, {"version": 0})


def test_an_update_that_ends_while_a_request_arrives_does_not_pass_it_on(serve):
    served, url = serve(new(1))

    class NextUpdate(ServedWeights):
        asked = 0

        @property
        def updating(self):  # version 1 until it has been asked for once: another trainer is at version 2 by then
            self.asked += 1
            return 1 if self.asked == 1 else super().updating

    served.__class__ = NextUpdate
    served.start(2)
    status, answer = post(url, "update_weights?version=1", stream(new(1)), headers=OCTETS)
    assert status == 409 and "tensors of version 1 came while 2 is being loaded" in answer["error"]


def test_a_port_can_be_taken_again_at_once():
    first = WeightServer(ServedWeights(zeros(new(1))))
    port = urlsplit(first.url).port
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /weight_info HTTP/1.1\r\nconnection: close\r\n\r\n")
        while client.recv(4096):
            pass
    first.close()
    WeightServer(ServedWeights(zeros(new(1))), port=port).close()


def test_web_pages_cannot_post_to_loopback(serve):
    served, url = serve(new(1))
    status, answer = post(url, "start_weight_update", b"{}", headers={"origin": "https://example.org"})
    assert status == 403 and "token" in answer["error"] and served.updating is None


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_stream_can_be_sent_again(serve, damage):
    weights = new(1)
    served, url = serve(weights)
    post(url, "start_weight_update")
    right = stream(weights)
    wrong = right[:-30] if damage == "cut" else right[:-500] + bytes([right[-500] ^ 1]) + right[-499:]
    status, answer = post(url, "update_weights", wrong, headers=OCTETS)
    assert status == 400 and "FrameError" in answer["error"]
    assert post(url, "update_weights", right, headers=OCTETS) == (200, {"tensors": 6})
    assert post(url, "finish_weight_update", json.dumps({"digests": digests(weights)}).encode())[0] == 200
    assert served.digests() == digests(weights)


def test_no_server_is_an_error_that_names_it():
    with pytest.raises(HttpTransferError, match=r"http://127.0.0.1:9: ConnectionRefusedError"):
        send(new(1), "http://127.0.0.1:9", retries=1)
    with pytest.raises(ValueError, match="Invalid trainer_args: urls"):
        send(new(1))


def test_names_of_the_workers_own(serve):
    """With is_checkpoint_format=False, tensors go to the parameters of their names, not where ``place`` puts them."""
    weights = new(1)
    served, url = serve(weights)
    served.place = lambda name, weight: []
    with pytest.raises(HttpTransferError, match="lacks 6 of 6 parameters"):
        send(weights, url)
    for form in ("octet-stream", "json"):
        send(weights, url, form=form, is_checkpoint_format=False)
        assert served.digests() == digests(weights)


def test_a_trainer_that_is_gone_gives_way_after_a_while(serve):
    weights = new(1)
    served, url = serve(weights, limits=Limits(abandoned=0.3))
    post(url, "start_weight_update", b'{"version": 7}')
    post(url, "update_weights", stream({"a": weights["a"]}), headers=OCTETS)
    with pytest.raises(HttpTransferError, match="already active, to version 7"):
        send(weights, url)
    time.sleep(0.35)
    assert send(weights, url) == 1 and served.digests() == digests(weights)


def raw(url, request):
    """All that a server answers to these bytes until it closes."""
    with socket.create_connection(urlsplit(url).netloc.split(":"), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize(
    "headers, body, says",
    [
        ("Content-Length: 2", b"{}", b"200"),
        ("Transfer-Encoding: chunked", b"1;x=y\r\n{\r\n001\r\n}\r\n0\r\nTrailer: 1\r\n\r\n", b"200"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2", b"0\r\n\r\n", b"send one"),
        ("Content-Length: 2\r\nContent-Length: 3", b"{}", b"send one"),
        ("Content-Length: -2", b"{}", b"no number"),
        ("Transfer-Encoding: gzip", b"{}", b"only 'chunked'"),
        ("Transfer-Encoding: chunked", b"x\r\n", b"no length of a chunk"),
        ("Transfer-Encoding: chunked", b"1\r\n{}\r\n0\r\n\r\n", b"longer or shorter"),
        ("Transfer-Encoding: chunked", b"0\r\n" + b"a: b\r\n" * 200, b"lines follow the last chunk"),
        ("Content-Length: 2000", b"{}", b""),
    ],
)
def test_bodies_of_every_kind(serve, headers, body, says):
    """Two requests on one connection; where the first's end cannot be told, the second is not read at all."""
    served, url = serve(new(1))
    second = b"POST /abort_weight_update HTTP/1.1\r\n\r\n"
    answer = raw(url, f"POST /start_weight_update HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body + second)
    assert says in answer and answer.count(b"HTTP/1.1 ") == (2 if says == b"200" else bool(says))
    assert served.updating is None


def test_what_an_answer_left_unread_is_no_request(serve):
    served, url = serve(new(1))
    hidden = b"POST /start_weight_update HTTP/1.1\r\n\r\n"
    answer = raw(url, b"GET /weight_info HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden)
    assert answer.count(b"HTTP/1.1 ") == 1 and b"connection: close" in answer and served.updating is None


def test_a_closed_server_leaves_no_thread_and_no_connection(serve):
    before = threading.active_count()
    server = WeightServer(ServedWeights(zeros(new(1))), limits=Limits(connections=2))
    port = int(server.url.rpartition(":")[2])
    busy = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    for one in busy:
        one.sendall(b"POST /update_weights HTTP/1.1\r\nContent-Length: 9\r\n")
    while threading.active_count() < before + 3:
        pass
    with socket.create_connection(("127.0.0.1", port)) as third:
        assert third.recv(1) == b"", "more connections than allowed"
    server.close()
    assert threading.active_count() == before
    for one in busy:
        assert one.recv(1) == b""
        one.close()


# The engine.


def engine(**info):
    made = WeightTransferEngineFactory.create_engine("http", None, None)
    made.init_transfer_engine(made.parse_init_info({"framework": "numpy"} | info))
    return made


def test_the_engine_receives_what_a_trainer_posts():
    weights, params = new(1), zeros(new(1))
    one = engine(token="secret")
    updater = WeightUpdater(one, ServedWeights(params))
    try:
        with pytest.raises(HttpTransferError, match="does not receive at present"):
            send(weights, one.url, token="secret")
        updater.start_weight_update(4)
        with ThreadPoolExecutor(1) as pool:
            update = pool.submit(updater.update_weights, {"version": 4, "timeout": 20})
            while True:
                try:
                    send(weights, one.url, version=4, token="secret", batch_bytes=1000)
                    break
                except HttpTransferError as error:
                    assert "does not receive at present" in str(error)
            update.result()
        assert not any(w.any() for w in params.values())
        assert updater.finish_weight_update(digests(weights)) == 4
        assert digests(params) == digests(weights)
    finally:
        one.shutdown()


def test_trainer_and_worker_agree_on_the_format():
    one = engine()
    params = zeros(new(1))
    updater = WeightUpdater(one, ServedWeights(params, place=lambda name, weight: []))
    try:
        for form, says in ((True, "the trainer sends with is_checkpoint_format=True"), (False, None)):
            updater.start_weight_update()
            with ThreadPoolExecutor(1) as pool:
                update = pool.submit(updater.update_weights, {"timeout": 20, "is_checkpoint_format": False})
                while one._handover._info is None:
                    pass
                if says is None:
                    send(new(1), one.url, is_checkpoint_format=form)
                    update.result()
                    continue
                with pytest.raises(HttpTransferError, match=says):
                    send(new(1), one.url, is_checkpoint_format=form)
                with pytest.raises(RuntimeError, match="given the update up"):
                    update.result()
        updater.finish_weight_update()
        assert digests(params) == digests(new(1))
    finally:
        one.shutdown()


def test_what_fails_in_the_worker_reaches_the_trainer():
    one = engine()

    def load(pairs):
        raise KeyError("no such parameter")

    try:
        with ThreadPoolExecutor(1) as pool:
            update = pool.submit(one.receive_weights, one.parse_update_info({"timeout": 20}), load)
            while one._handover._info is None:
                pass
            with pytest.raises(HttpTransferError, match="KeyError: 'no such parameter'"):
                send(new(1), one.url, batch_bytes=1)
            with pytest.raises(KeyError):
                update.result()
    finally:
        one.shutdown()


def test_another_trainers_values_do_not_get_lost_in_an_update():
    one = engine()
    first, other = ({"params": [encode_for_http("a", new(seed)["a"], encoding="bits")]} for seed in (1, 2))
    came = []
    try:
        with ThreadPoolExecutor(1) as pool:
            update = pool.submit(one.receive_weights, one.parse_update_info({"timeout": 20}), came.extend)
            while one._handover._info is None:
                pass
            post(one.url, "start_weight_update", b"{}")
            path = "http_update_weights/"
            assert [post(one.url, path, json.dumps(first).encode())[0] for _ in range(2)] == [200, 200]
            status, answer = post(one.url, path, json.dumps(other).encode())
            assert status == 400 and "'a' comes twice in one update, with other values" in answer["error"]
            assert post(one.url, "finish_weight_update") == (200, {"version": 1})
            update.result()
        assert [name for name, _ in came] == ["a"]
    finally:
        one.shutdown()


def test_a_worker_that_fails_while_the_trainer_finishes_says_so():
    one = engine()
    failing = threading.Event()

    def load(pairs):
        failing.wait(20)
        raise KeyError("no such parameter")

    def finishing():  # everything has been posted: what follows it in the queue is the question how it went
        threading.Timer(0.1, failing.set).start()

    try:
        with ThreadPoolExecutor(1) as pool:
            update = pool.submit(one.receive_weights, one.parse_update_info({"timeout": 20}), load)
            while one._handover._info is None:
                pass
            with pytest.raises(HttpTransferError, match="the worker failed: KeyError: 'no such parameter'"):
                send({"a": new(1)["a"]}, one.url, timeout=5, before_finish=finishing)
            with pytest.raises(KeyError):
                update.result()
    finally:
        one.shutdown()


def test_a_trainer_that_gives_up_or_never_comes():
    one = engine()

    def broken():
        yield "a", new(1)["a"]
        raise OSError("disk is gone")

    try:
        with pytest.raises(TimeoutError, match=r"said nothing for 0.01 s"):
            one.receive_weights(one.parse_update_info({"timeout": 0.01}), print)
        with ThreadPoolExecutor(1) as pool:
            update = pool.submit(one.receive_weights, one.parse_update_info({"timeout": 20}), lambda pairs: None)
            while one._handover._info is None:
                pass
            with pytest.raises(OSError, match="disk is gone"):
                Engine.trainer_send_weights(broken(), {"urls": [one.url]})
            with pytest.raises(RuntimeError, match="given the update up"):
                update.result()
    finally:
        one.shutdown()


def test_receiving_before_init_is_refused():
    one = Engine(None, None)
    one.shutdown()
    with pytest.raises(RuntimeError, match="not initialized"):
        one.receive_weights(one.parse_update_info({}), print)
    with pytest.raises(RuntimeError, match="not initialized"):
        _ = one.url
    assert describe_weights([], digests=False) == {"names": [], "dtype_names": [], "shapes": []}
