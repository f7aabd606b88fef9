"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help='Change the machine: --set sip.cube.hbm.bandwidth="2 TB/s". Repeatable.', metavar="KEY=VALUE"
    ),
]
Sips = Annotated[int | None, typer.Option("--sips", help="Number of SIPs instead of the file's.", min=1)]
