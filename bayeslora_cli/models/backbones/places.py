"""Finds where a model is: a hub name, a directory, a file in a package, a GGUF file."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from bayeslora_cli.errors import ModelError
from bayeslora_cli.runs.model_card import GGUF


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where transformers finds a model."""

    name: str
    """A hub name or a directory."""
    gguf: str | None = None
    """A GGUF file there, which holds configuration, weights and tokenizer; None: separate files."""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` besides the name."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of a model's `from_pretrained`, with the name; a GGUF file is dequantized."""
        import transformers

        found = {"pretrained_model_name_or_path": self.name, **self.options}
        made = getattr(transformers, "GgufConfig", None)  # older ones always dequantize
        if self.gguf is not None and made is not None:
            found["quantization_config"] = made(dequantize=True)
        return found

    @property
    def path(self) -> str:
        """The hub name, the directory, or the GGUF file."""
        return self.name if self.gguf is None else f"{self.name}/{self.gguf}"


def backbone_path(name: str) -> str:
    """Resolve --model to a hub name, a directory or a GGUF file: see `find_backbone`.

    Raises:
        ModelError: there is no such package, directory or file.
    """
    return find_backbone(name).path


def find_backbone(name: str) -> Place:
    """Resolve --model.

    Args:
        name: a hub name, a directory, package:NAME/PATH for what lies in an installed package, each
            with the name of a GGUF file at its end if the model is one.
    Raises:
        ModelError: there is no such package, directory or file, or no `gguf` package to read it.
    """
    if not name.endswith(GGUF):
        return Place(name=_directory(name))
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"--model {name}: a GGUF file needs the package gguf: pip install 'bayeslora[gguf]'"
        )
    if name.startswith("package:"):
        parent, _, file = name.rpartition("/")
        place = Place(name=_directory(parent), gguf=file)
    elif name.startswith(("/", ".", "~")) or Path(name).exists():
        path = Path(name)
        place = Place(name=str(path.parent), gguf=path.name)
    else:  # OWNER/REPOSITORY/FILE on the hub
        parts = PurePosixPath(name).parts
        if len(parts) < 3:
            raise ModelError(f"--model {name}: no such file")
        return Place(name="/".join(parts[:2]), gguf="/".join(parts[2:]))
    if not Path(place.path).is_file():
        raise ModelError(f"--model {name}: no such file")
    return place


def _directory(name: str) -> str:
    """Resolve --model without a GGUF file: a hub name stays, anything else is a directory."""
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise ModelError(f"--model {name}: no such directory")
    if not name.startswith("package:"):
        if Path(name).is_dir():
            for path in Path(name).iterdir():  # reading a pipe would wait for a writer
                if path.exists() and not path.is_file() and not path.is_dir():
                    raise ModelError(f"--model {name}: {path.name} is not a regular file")
        return name
    package, _, inner = name.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or found.origin is None:
        raise ModelError(
            f"--model {name}: the package {package} is not installed: pip install {package}"
        )
    path = Path(found.origin).parent / inner
    if not path.is_dir():
        raise ModelError(f"--model {name}: {package} holds no directory {inner}")
    return str(path)


@contextmanager
def parsed_once(place: Place) -> Iterator[None]:
    """Parse a GGUF file only once per process, whatever transformers reads of it inside the block.

    transformers parses the file, whose vocabulary takes seconds, anew for the configuration, the
    tokenizer and the weights, and makes its table of tensor names for each module of the model.
    """
    if place.gguf is None:
        yield
        return
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading

    reader, names, bar = gguf.GGUFReader, gguf.get_tensor_name_map, reading.tqdm
    gguf.GGUFReader = parsed
    gguf.get_tensor_name_map = lru_cache(names)
    reading.tqdm = lambda tensors, **_: tensors  # no progress bar
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map, reading.tqdm = reader, names, bar


def parsed(path: str | os.PathLike[str]) -> Any:
    """Return the reader of a GGUF file from the package `gguf`; the last one is remembered."""
    stat = os.stat(path)
    return _parsed_version(os.fspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=1)
def _parsed_version(path: str, *_: int) -> Any:
    import numpy as np
    from gguf import gguf_reader

    class Reader(gguf_reader.GGUFReader):  # type: ignore[misc]  # it has no types
        """Cuts the file's fields from a plain array, a third of the time of cutting a memory map.

        The parts of a memory map are Python objects with a dictionary each, half a million for a
        vocabulary of 50,000, through which each garbage collection would have to go.
        """

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, value: Any) -> None:
            self._plain = np.asarray(value)

    return Reader(path)
