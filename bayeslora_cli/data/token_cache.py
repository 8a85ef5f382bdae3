"""Tokens on disk, made once: for a sweep's processes, for a cluster's, and for the next command.

A file holds the tokens of one split. Its name is the checksum of all that they depend on: the rows,
the tokenizer and its libraries' versions, the length to truncate to. So nothing in it goes stale.
Only tokenizers of `transformers` itself in the `tokenizers` library are known that well.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayeslora_cli.data.tokenization import encode
from bayeslora_cli.errors import StorageError
from bayeslora_cli.models.backbones.fingerprint import data_fingerprint
from bayeslora_cli.runs.atomic_write import replacing
from bayeslora_cli.runs.file_lock import once
from bayeslora_cli.tasks.task import Examples

logger = logging.getLogger("bayeslora")

VARIABLE = "BAYESLORA_CACHE"
"""The directory; set and empty: there is none."""
LIMIT = 2 * 2**30
"""Bytes in it at the most: MNLI takes 75 MB. What has not been read for longest goes first."""
PATIENCE = 600.0
"""Seconds to wait for another process's tokens."""
_FORMAT = 1  # of the files and their names
_OURS = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\.tmp)?")  # whatever else is in the directory


def encode_once(examples: Examples, tokenizer: Any, max_length: int) -> dict[str, Tensor]:
    """As `batches.encode`, or what this or another process has made so before.

    Of several processes that want the same at the same time one tokenises, and the others wait.
    """
    directory = _directory()
    name = None if directory is None else _name(examples, tokenizer, max_length)
    if directory is None or name is None:
        return encode(examples, tokenizer, max_length)
    path = directory / f"{name}.safetensors"
    with once(path, "tokenise the same rows", PATIENCE) as first:
        found = None if first else _read(path)
        # the first row is tokenised anyway, which leaves the tokenizer as one that has done it all
        if found is None or not _begins(found, examples, tokenizer, max_length):
            found = encode(examples, tokenizer, max_length)
            _write(path, found)
    return found


def _directory() -> Path | None:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = os.environ.get(VARIABLE, f"{caches}/bayeslora")
    try:
        return Path(chosen).expanduser() if chosen else None
    except RuntimeError:  # nobody's home
        return None


def _name(examples: Examples, tokenizer: Any, max_length: int) -> str | None:
    """A checksum of what the tokens depend on; None: that is not known.

    What the tokenizer's last call has left is taken from it; each call sets its own.
    """
    kind = type(tokenizer)
    if not tokenizer.is_fast or not kind.__module__.startswith("transformers."):
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    try:
        state = backend.to_str()
    except Exception:  # parts of it are Python's (RoFormer's); `tokenizers` has no class for that
        return None
    facts = [
        _FORMAT,
        version("transformers"),
        version("tokenizers"),
        kind.__qualname__,
        tokenizer.truncation_side,
        tokenizer.split_special_tokens,
        tokenizer.model_input_names,
        max_length,
        state,
    ]
    digest = sha256(json.dumps(facts).encode())
    for texts in (examples.first, examples.second):
        digest.update(f"{texts and list(map(len, texts))}".encode())
        digest.update("".join(texts or ()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _begins(
    found: Mapping[str, Tensor], examples: Examples, tokenizer: Any, max_length: int
) -> bool:
    """Whether the first row's tokens are those in a file."""
    second = None if examples.second is None else examples.second[:1]
    row = encode(Examples(examples.first[:1], second, None), tokenizer, max_length)
    return row.keys() == found.keys() and all(
        torch.equal(value, found[name][: len(value)]) for name, value in row.items()
    )


def _read(path: Path) -> dict[str, Tensor] | None:
    """What is in a file; None: not what was written."""
    try:
        with safe_open(path, "pt") as file:
            # copies: it is mapped, and may go
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            whole = file.metadata()["sha256"] == data_fingerprint(found.values())
    # torch, which opens it a second time, has a RuntimeError if it is gone
    except (OSError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        logger.debug("%s cannot be read: %s", path, error)
        return None
    with suppress(OSError):  # it may be somebody else's
        os.utime(path)
    return found if whole else None


def _write(path: Path, tokens: dict[str, Tensor]) -> None:
    """Keep tokens, and of the others what there is room for; nobody's work depends on it."""
    tokens = dict(sorted(tokens.items()))
    try:
        with replacing(path) as temporary:
            save_file(tokens, temporary, metadata={"sha256": data_fingerprint(tokens.values())})
        # temporary ones too: whoever was killed over one leaves it
        files = [file for file in path.parent.iterdir() if _OURS.fullmatch(file.name)]
        total = 0
        for file in sorted(files, key=lambda file: -file.stat().st_mtime):
            total += file.stat().st_size
            if total > LIMIT:
                file.unlink()
    except (StorageError, OSError) as error:
        logger.debug("tokens are not kept: %s", error)
