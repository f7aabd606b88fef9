"""Weights over HTTP on loopback: octet-streams against two ways of sending JSON, in one run.

``python benches/weight_http.py [MiB]`` sends one bfloat16 model from this process to a server in another, as often as
it takes for a best of several runs of each way, taken in turn:

octet-stream    frames, every tensor with its hash
JSON, streamed  this package's own JSON: base64 made and sent piece by piece, bit exact, with hashes
JSON, plain     encode_for_http, json.dumps, one POST per 10 MiB of base64, json.loads, decode_from_http: what trainers
                of the field send, with bfloat16 as float16

All go into a session of the same served weights. *Moved* is the time until the server has staged everything and
confirmed it; *visible* has the start and the finish of the session too. Exits with 1 where octet-streams move less
than ten times what plain JSON does.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.serde import http_batches
from kernbench.weight_sync.transfer.http_client import HttpTrainerArgs, send_weights

TARGET = 10.0
"""Against plain JSON, which is what there is without this package's engine."""
HIDDEN, MIDDLE = 1024, 2816

SERVER = """
import sys
import numpy as np
from weight_http import model
from kernbench.weight_sync.transfer import ServedWeights
from kernbench.weight_sync.transfer.http_server import WeightServer

served = ServedWeights({name: np.zeros_like(weight) for name, weight in model(int(sys.argv[1]))})
with WeightServer(served) as server:
    print(server.url, flush=True)
    for line in sys.stdin:
        print(*served.digests().values(), flush=True)
"""


def shapes(size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of decoder layers of about ``size`` bytes in all."""
    layer = 0
    while size > 0:
        for name, shape in (
            ("self_attn.qkv_proj", (3 * HIDDEN, HIDDEN)),
            ("self_attn.o_proj", (HIDDEN, HIDDEN)),
            ("mlp.gate_up_proj", (2 * MIDDLE, HIDDEN)),
            ("mlp.down_proj", (HIDDEN, MIDDLE)),
            ("input_layernorm", (HIDDEN,)),
        ):
            yield f"model.layers.{layer}.{name}.weight", shape
            size -= 2 * int(np.prod(shape))
        layer += 1


def model(size: int) -> Iterator[tuple[str, Any]]:
    """Values that float16 has too, so that all ways bring the same bits."""
    rng = np.random.default_rng(0)
    for name, shape in shapes(size):
        yield name, rng.integers(-128, 128, shape, np.int8).astype(ml_dtypes.bfloat16)


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> dict[str, Any]:
    connection.request("POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status}, {text.decode()}")
    answer: dict[str, Any] = json.loads(text)
    return answer


def send_plain(url: str, weights: list[tuple[str, Any]]) -> tuple[float, float]:
    """As trainers of the field do; gives (moved, visible) in seconds."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    start = time.perf_counter()
    post(connection, "/start_weight_update", b"{}")
    began = time.perf_counter()
    for message in http_batches(weights):
        post(connection, "/http_update_weights/", json.dumps(message).encode())
    moved = time.perf_counter() - began
    post(connection, "/finish_weight_update", b"{}")
    visible = time.perf_counter() - start
    connection.close()
    return moved, visible


def send_form(url: str, weights: list[tuple[str, Any]], form: str) -> tuple[float, float]:
    """Through the engine."""
    began = ended = 0.0

    def measured() -> Iterator[tuple[str, Any]]:
        nonlocal began
        began = time.perf_counter()
        yield from weights

    def finishing() -> None:
        nonlocal ended
        ended = time.perf_counter()

    start = time.perf_counter()
    send_weights(measured(), HttpTrainerArgs([url], form=form, before_finish=finishing))  # type: ignore[arg-type]
    return ended - began, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("size", nargs="?", type=int, default=128, help="MiB of weights")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of a table")
    options = parser.parse_args()
    weights = list(model(options.size << 20))
    nbytes = sum(weight.nbytes for _, weight in weights)
    expected = [digest(weight) for _, weight in weights]
    ways: dict[str, Callable[[str], tuple[float, float]]] = {
        "octet-stream": lambda url: send_form(url, weights, "octet-stream"),
        "JSON, streamed": lambda url: send_form(url, weights, "json"),
        "JSON, plain": lambda url: send_plain(url, weights),
    }
    best: dict[str, list[float]] = {way: [float("inf")] * 2 for way in ways}
    command = [sys.executable, "-c", SERVER, str(options.size << 20)]
    here = str(Path(__file__).parent)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": here}
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        url = server.stdout.readline().strip()
        for _ in range(options.runs):
            for way, send in ways.items():
                best[way] = [min(pair) for pair in zip(best[way], send(url), strict=True)]
                print("check", file=server.stdin, flush=True)
                if server.stdout.readline().split() != expected:
                    raise RuntimeError(f"{way}: other weights are served than were sent")
        server.stdin.close()
    speeds = {way: [nbytes / seconds / 1e9 for seconds in pair] for way, pair in best.items()}
    moved, visible = speeds.pop("octet-stream")
    ratios = {way: moved / pair[0] for way, pair in speeds.items()}
    if options.json:
        speeds = {"octet-stream": [moved, visible]} | speeds
        print(json.dumps({"bytes": nbytes, "gb_per_s": speeds, "ratios": ratios}))
    else:
        table = Table("way", "moved, GB/s", "visible, GB/s", "octet-stream moves", title=f"{nbytes / 1e6:.0f} MB")
        table.add_row("octet-stream", f"{moved:.2f}", f"{visible:.2f}", "")
        for way, pair in speeds.items():
            table.add_row(way, f"{pair[0]:.3f}", f"{pair[1]:.3f}", f"{ratios[way]:.1f} times as fast")
        Console().print(table)
    return 0 if ratios["JSON, plain"] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
