"""Identifies a pretrained model by its weights, configuration, tokenizer and code.

Weights are files of gigabytes: each is hashed once, and the cache remembers its checksum by path,
size, times and inode.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import cached_file

from bayeslora_cli.errors import ModelError, StorageError
from bayeslora_cli.models.backbones.loading import LOADING_ERRORS, load_configuration
from bayeslora_cli.models.backbones.places import find_backbone
from bayeslora_cli.runs.atomic_write import write_json

logger = logging.getLogger("bayeslora")

VARIABLE = "BAYESLORA_CACHE"
"""The environment variable that names the cache's directory; set and empty: no files are kept."""
REMEMBERED = 1000
"""Largest number of checksums that the cache remembers."""
# what transformers reads, the first that there is
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
TOKENIZERS = (
    "tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "*.model",
    "*.spm", "*.vocab",
)  # fmt: skip
# what of a configuration has no effect on what a model computes
IDLE = (
    "_name_or_path", "architectures", "dtype", "torch_dtype", "id2label", "label2id",
    "transformers_version", "use_cache", "output_attentions", "output_hidden_states",
    "return_dict", "problem_type",
)  # fmt: skip


def cache_directory() -> Path | None:
    """Return the directory of files that are kept between runs; None: none are kept."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = os.environ.get(VARIABLE, f"{caches}/bayeslora")
    try:
        return Path(chosen).expanduser() if chosen else None
    except RuntimeError:  # the user has no home directory
        return None


def model_identity(
    name: str, *, trust_remote_code: bool = False, verify: bool = False
) -> dict[str, Any]:
    """Return the checksums of a model's weights, tokenizer and code, and its configuration.

    Args:
        name: the value of --model.
        verify: hash the weights again, even if their checksums are remembered.
    Raises:
        ModelError: the model's configuration cannot be loaded.
    """
    place = find_backbone(name)
    configuration = load_configuration(name, trust_remote_code=trust_remote_code)
    try:
        found = Path(str(cached_file(place.name, place.gguf or "config.json")))
    except LOADING_ERRORS as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"--model {name}: cannot load the configuration: {first}") from error
    values = json.loads(configuration.to_json_string(use_diff=False))
    memory, directory = _Memory(verify=verify), found.parent
    files: dict[str, str | None]
    if place.gguf is not None:  # its own root: a file that was renamed is the same model
        files = {"weights": _of_files(found, [found], memory), "tokenizer": None, "code": None}
    else:
        files = {
            "weights": _of_files(directory, _weights(directory), memory),
            "tokenizer": _of_files(directory, _matching(directory, TOKENIZERS)),
            "code": _of_files(directory, _matching(directory, ("*.py",))),
        }
    return {
        **files,
        "configuration": {k: v for k, v in values.items() if k not in IDLE},
        "transformers": transformers.__version__,
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List how a model differs from its earlier state, as far as both are known.

    Args:
        then, now: results of `model_identity`.
    """
    found = []
    if then.get("weights") != now["weights"] and None not in (then.get("weights"), now["weights"]):
        found.append("its weights are others now")
    if (changed := changed_configuration(then, now)) is not None:
        found.append(changed)
    found += [
        f"its {name} is another now"
        for name in ("tokenizer", "code")
        if name in then and then[name] != now[name]
    ]
    return found


def changed_configuration(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Tell what has changed in a model's configuration; None: nothing."""
    before, after = then.get("configuration") or {}, now["configuration"]
    names = before.keys() & after.keys()
    if then.get("transformers") == now["transformers"]:
        names = before.keys() | after.keys()  # another version has other defaults
    changed = [
        f"{name} {before.get(name)} then, {after.get(name)} now"
        for name in sorted(names)
        if before.get(name) != after.get(name)
    ]
    return f"its config.json is another now: {'; '.join(changed)}" if changed else None


def checksum(identity: Mapping[str, Any]) -> str:
    """Combine the checksums of a model's weights, tokenizer and code into one."""
    files = [identity[name] for name in ("weights", "tokenizer", "code")]
    return sha256(json.dumps(files).encode()).hexdigest()


def _weights(directory: Path) -> list[Path]:
    for name in WEIGHTS:
        path = directory / name
        if path.is_file():
            if not name.endswith(".json"):
                return [path]
            shards = json.loads(path.read_text(encoding="utf-8")).get("weight_map", {})
            return [path, *(directory / shard for shard in sorted(set(shards.values())))]
    return []


def _matching(directory: Path, patterns: Iterable[str]) -> list[Path]:
    found = {path for pattern in patterns for path in directory.glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.name not in WEIGHTS)


def _of_files(directory: Path, files: list[Path], memory: _Memory | None = None) -> str | None:
    """Compute a checksum of the names and contents of files; None: there are no files."""
    if not files:
        return None
    try:
        entries = [
            [file.relative_to(directory).as_posix(), memory.of(file) if memory else _hashed(file)]
            for file in files
        ]
    except OSError as error:
        raise ModelError(f"--model: {error.filename}: {error.strerror}") from error
    if memory is not None:
        memory.keep()
    return sha256(json.dumps(entries).encode()).hexdigest()


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


_HASHED: dict[str, Any] = {}
"""What this process has hashed, as the cache's file has it; there may be no cache."""


class _Memory:
    """Checksums of files by path, each with the file's size, times and inode at that time."""

    def __init__(self, *, verify: bool) -> None:
        directory = cache_directory()
        self.path = None if directory is None else directory / "weights.json"
        self.known: dict[str, Any] = {}
        self.changed = False
        self.verify = verify
        try:
            found = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
            self.known = found if isinstance(found, dict) else {}
        except (OSError, ValueError, RecursionError):
            pass
        self.known |= _HASHED

    def of(self, path: Path) -> str:
        """Return the sha256 of a file, which is read only if it may have changed."""
        real = path.resolve()
        state = real.stat()
        stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        entry = self.known.get(str(real))
        if not self.verify and isinstance(entry, list) and entry[:-1] == stamp:
            return str(entry[-1])
        digest = _hashed(real)
        self.known.pop(str(real), None)
        self.known[str(real)] = _HASHED[str(real)] = [*stamp, digest]
        self.changed = True
        return digest

    def keep(self) -> None:
        """Save new checksums; if the cache cannot be written, nothing is remembered."""
        if self.path is None or not self.changed:
            return
        newest = dict(list(self.known.items())[-REMEMBERED:])
        try:
            write_json(self.path, newest)
        except (StorageError, OSError) as error:
            logger.debug("checksums of weights are not kept: %s", error)
