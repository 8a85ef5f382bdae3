"""`Export`: a finished export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A finished export."""

    path: Path
    """The export's directory."""
    manifest: Mapping[str, Any]
    """Its manifest.json: format, source, result of the check, metrics, checksums of the files."""

    def describe(self, *, warned: bool = True) -> str:
        """Return the measurements as text, one line each; `warned`: also what it warned of."""
        from bayeslora_cli.export.findings import describe_export

        return "\n".join(describe_export(dict(self.manifest), warned=warned))
