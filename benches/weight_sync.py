"""Llama-3.1-8B's weights from TP 4 trainers to two TP 2 workers on eight SIPs, by every engine.

Each engine's sync is simulated at full size without values, and with values, every bit of them compared, on a model of
the same proportions that a laptop holds. The table sets the time against what no engine can beat: the bytes that every
worker needs, over its links. ``python benches/weight_sync.py --help`` lists what can be changed; it is the command
``kernbench weights simulate``.
"""

import typer

from kernbench.cli.weights_simulate import simulate

if __name__ == "__main__":
    typer.run(simulate)
