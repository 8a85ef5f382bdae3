"""Reads tables from parquet files, and from data sets of the library `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayeslora_cli.errors import DataError, MissingSplitError, UserError
from bayeslora_cli.tasks.sources.tables.table import HUB_FORM, SUFFIXES, Table, check_names

_DICT = "dataset_dict.json"  # in a folder of several splits
_SAVED = "state.json"  # in a folder of one


def read_parquet(source: str, option: str) -> Table:
    """Read a parquet file.

    Raises:
        DataError: it is none, or has no rows.
    """
    import pyarrow.parquet

    with _parquet(source, option):
        # not `read_table`, which adds columns if a folder is named like a partition
        with pyarrow.parquet.ParquetFile(source) as file:
            table = file.read()
        table.validate(full=True)  # text that is not UTF-8
    return _from_arrow(table, option, source, {})


@contextmanager
def _parquet(source: str, option: str) -> Iterator[None]:
    """Turn what pyarrow raises inside into one message."""
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{option} {source}: cannot be read as parquet ({_first_line(error)}); write it again"
        ) from error


def parquet_windows(source: str, option: str, rows: int) -> Iterator[Table]:
    """Read a parquet file some rows at a time.

    Raises:
        DataError: it is none, or is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    first = 0
    with _parquet(source, option), pyarrow.parquet.ParquetFile(source) as file:
        for batch in file.iter_batches(rows):
            part = pyarrow.Table.from_batches([batch])
            part.validate(full=True)
            if len(part):
                yield replace(_from_arrow(part, option, source, {}), first=first)
            first += len(part)


def read_hub(source: str, option: str, name: str, config: str | None, split: str) -> Table:
    """Read a split of a data set on the hub, or in its local cache.

    Raises:
        UserError: it cannot be loaded.
        MissingSplitError: it has no such split.
    """
    try:
        import datasets  # slow, and not needed for files

        loaded = datasets.load_dataset(name, config)
    # Offline mode, no network, no such name, a config missing, a broken download: OSError,
    # ValueError, the HTTP client's and the library's own classes, by version; no code of ours.
    except Exception as error:
        raise UserError(
            f"{option} {source}: no such file, and no data set that can be loaded from the Hugging "
            f"Face hub or its cache: {_first_line(error)}. Give a file ({', '.join(SUFFIXES)}), or "
            f"{HUB_FORM}"
        ) from error
    if split not in loaded:
        raise MissingSplitError(
            f"{option} {source}: found the splits {', '.join(loaded)}, and no {split!r}; "
            f"name one of them: {HUB_FORM}"
        )
    return _from_dataset(loaded[split], option, source if "@" in source else f"{source}@{split}")


def has_saved_splits(folder: str) -> bool:
    """Return whether `save_to_disk` has written a `DatasetDict` into a folder."""
    return (Path(folder) / _DICT).is_file()


def read_saved(folder: str, option: str, split: str) -> Table:
    """Read what `save_to_disk` has written: one split of a `DatasetDict`, or a `Dataset`.

    Raises:
        DataError: the folder holds neither, or is damaged.
        MissingSplitError: the `DatasetDict` has no such split.
    """
    several = has_saved_splits(folder)
    if not several and not (Path(folder) / _SAVED).is_file():
        raise DataError(
            f"{option} {folder}: is a directory; give one file ({', '.join(SUFFIXES)}), or a "
            "directory that save_to_disk of the library datasets has written"
        )
    try:
        import datasets  # slow, and not needed for files

        loaded = datasets.load_from_disk(folder)
    except Exception as error:  # a damaged folder: JSON, Arrow and OS errors, none of them ours
        raise DataError(
            f"{option} {folder}: cannot be read as a data set ({_first_line(error)}); write it "
            "again with save_to_disk"
        ) from error
    if not several:
        return _from_dataset(loaded, option, folder)
    if split not in loaded:
        raise MissingSplitError(
            f"{option} {folder}: found the splits {', '.join(loaded)}, and no {split!r}; name the "
            f"directory of one of them, such as {Path(folder) / next(iter(loaded), split)}"
        )
    return _from_dataset(loaded[split], option, str(Path(folder) / split))


def _from_dataset(data: Any, option: str, title: str) -> Table:
    import datasets

    # a list's feature is that of its parts
    kinds = {name: getattr(kind, "feature", kind) for name, kind in data.features.items()}
    class_names = {
        column: tuple(feature.names)
        for column, feature in kinds.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    return _from_arrow(data.with_format("arrow")[:], option, title, class_names)


def _from_arrow(
    table: Any, option: str, source: str, class_names: dict[str, tuple[str, ...]]
) -> Table:
    check_names(table.column_names, source)
    if not table.num_rows:
        raise DataError(f"{option} {source}: found no rows; expected at least one")
    return Table(
        option=option,
        source=source,
        names=tuple(table.column_names),
        rows=table.num_rows,
        read_column=lambda name: list(table.column(name).to_pylist()),
        class_names=class_names,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
