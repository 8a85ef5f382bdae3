"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
Verify = Annotated[bool, typer.Option("--verify", help="Hash the pretrained model's weights anew.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
