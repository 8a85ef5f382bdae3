"""Cache of tokens on disk, shared by the processes of a sweep or a cluster and by commands.

A file holds the tokens of one split. Its name is a checksum of everything that they depend on: the
rows, the tokenizer and its libraries' versions, the length to truncate to. So a file never becomes
outdated. Tokens are cached only for fast tokenizers of `transformers`, whose whole state is known.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayeslora_cli.data.tokenization import encode
from bayeslora_cli.errors import StorageError
from bayeslora_cli.models.backbones.fingerprint import data_fingerprint
from bayeslora_cli.models.backbones.identity import cache_directory
from bayeslora_cli.runs.atomic_write import replacing
from bayeslora_cli.runs.environment import version
from bayeslora_cli.runs.file_lock import once
from bayeslora_cli.tasks.task import Examples
from bayeslora_cli.tasks.validation_share import take

logger = logging.getLogger("bayeslora")

LIMIT = 2 * 2**30
"""Largest size in bytes; MNLI takes 75 MB. The files read least recently are deleted first."""
PATIENCE = 600.0
"""Seconds to wait for another process's tokens."""
# version of the files and their names; a change of what any encode function makes of rows raises it
_FORMAT = 2
_OURS = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\.tmp)?")  # other files are not touched


Encode = Callable[[Examples, Any, int], dict[str, Tensor]]


def encode_once(
    examples: Examples, tokenizer: Any, max_length: int, make: Encode | None = None
) -> dict[str, Tensor]:
    """Return the tokens of a function, from the cache if they are there.

    If several processes need the same tokens at the same time, one makes them and the others wait.

    Args:
        make: the function, a deterministic one of a module; None: `tokenization.encode`.
    """
    directory = cache_directory()
    own, make = make is not None, make or encode
    name = (
        None if directory is None else _name(examples, tokenizer, max_length, make if own else None)
    )
    if directory is None or name is None:
        return make(examples, tokenizer, max_length)
    path = directory / f"{name}.safetensors"
    with once(path, "tokenise the same rows", PATIENCE) as first:
        found = None if first else _read(path)
        # tokenising the first row also leaves the tokenizer in the state after tokenising them all
        if found is None or not _begins(found, examples, tokenizer, max_length, make):
            found = make(examples, tokenizer, max_length)
            _write(path, found)
    return found


def _name(examples: Examples, tokenizer: Any, max_length: int, make: Encode | None) -> str | None:
    """Return a checksum of everything the tokens depend on; None: it is not known.

    The truncation and padding of the tokenizer's last call are left out; each call sets its own.
    """
    kind = type(tokenizer)
    if not tokenizer.is_fast or not kind.__module__.startswith("transformers."):
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    try:
        state = backend.to_str()
    except Exception:  # a part is Python code (RoFormer's); `tokenizers` raises plain Exceptions
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
    if make is not None:
        facts += [
            f"{make.__module__}:{make.__qualname__}",
            tokenizer.chat_template,
            tokenizer.special_tokens_map,
        ]
    digest = sha256(json.dumps(facts, default=str).encode())
    for texts in (examples.first, examples.second):
        digest.update(f"{texts and list(map(len, texts))}".encode())
        digest.update("".join(texts or ()).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _begins(
    found: Mapping[str, Tensor], examples: Examples, tokenizer: Any, max_length: int, make: Encode
) -> bool:
    """Return whether a file's tokens begin with those of the first row."""
    row = make(take(examples, range(1)), tokenizer, max_length)
    return row.keys() == found.keys() and all(
        # cells of one row may be narrower: it may have fewer choices than others
        torch.equal(value, found[name][tuple(map(slice, value.shape))])
        for name, value in row.items()
    )


def _read(path: Path) -> dict[str, Tensor] | None:
    """Read a file; None: it is missing, damaged or not from this cache."""
    try:
        with safe_open(path, "pt") as file:
            # copies: the file is mapped into memory, and may be deleted
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            whole = file.metadata()["sha256"] == data_fingerprint(found.values())
    # torch opens the file a second time, and raises RuntimeError if it is gone
    except (OSError, RuntimeError, SafetensorError, KeyError, TypeError) as error:
        logger.debug("%s cannot be read: %s", path, error)
        return None
    with suppress(OSError):  # it may belong to another user
        os.utime(path)
    return found if whole else None


def _write(path: Path, tokens: dict[str, Tensor]) -> None:
    """Write tokens to the cache and delete the oldest files beyond `LIMIT`; ignore failures."""
    tokens = dict(sorted(tokens.items()))
    try:
        with replacing(path) as temporary:
            save_file(tokens, temporary, metadata={"sha256": data_fingerprint(tokens.values())})
        # temporary files too: a process that was killed leaves one
        files = [file for file in path.parent.iterdir() if _OURS.fullmatch(file.name)]
        total = 0
        for file in sorted(files, key=lambda file: -file.stat().st_mtime):
            total += file.stat().st_size
            if total > LIMIT:
                file.unlink()
    except (StorageError, OSError) as error:
        logger.debug("tokens are not kept: %s", error)
