"""Reads a table: a file in csv, tsv, JSON or parquet, or a split of a data set of the library
`datasets`, saved in a folder or on the hub.

`tabular` decides what the columns mean.
"""

from __future__ import annotations

import os
import re

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.tables.arrow import read_hub, read_parquet, read_saved
from bayeslora_cli.tasks.sources.tables.conll import read_conll
from bayeslora_cli.tasks.sources.tables.json_rows import read_json
from bayeslora_cli.tasks.sources.tables.table import CONLL, SUFFIXES, Table
from bayeslora_cli.tasks.sources.tables.text_files import read_csv, read_tsv

_HUB_NAME = re.compile(
    r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(:(?P<config>[^:@/\\]+))?(@(?P<split>[^:@/\\]+))?",
    re.ASCII,
)


def read_table(source: str, option: str, *, split: str) -> Table:
    r"""Read the table that a user named.

    A csv file has a header line and may quote fields. In a tsv file, as in GLUE's, a quotation mark
    is an ordinary character, and a line ends only at "\n". Both are in UTF-8, and so is JSON Lines,
    which has one object per line; a file in CoNLL's form has a word and its
    tag per line (`tables.conll`); a JSON file may be one array of objects instead. Blank lines are
    skipped.

    Args:
        source: an existing file with one of `SUFFIXES`, a directory that `save_to_disk` has
            written, or a data set on the hub (or in its local cache), written as `HUB_FORM`.
        option: the option that names the source, such as `--train-file`.
        split: the data set's split, unless `source` names one.

    Raises:
        DataError: the file cannot be read as its suffix says, or the split does not exist.
        UserError: the hub's data set cannot be loaded.
    """
    suffix = os.path.splitext(source)[1].lower()
    if os.path.isdir(source):
        return read_saved(source, option, split)
    if not os.path.exists(source):
        hub = _HUB_NAME.fullmatch(source)
        if hub is None or suffix in SUFFIXES:
            raise DataError(f"{option} {source}: no such file")
        return read_hub(source, option, hub["name"], hub["config"], hub["split"] or split)
    if not os.path.isfile(source):  # reading a pipe would wait for a writer
        raise DataError(
            f"{option} {source}: is not a regular file; give one ({', '.join(SUFFIXES)})"
        )
    if suffix not in SUFFIXES:
        raise DataError(
            f"{option} {source}: found a file with the suffix {suffix!r}; "
            f"expected one of {', '.join(SUFFIXES)}"
        )
    if suffix == ".parquet":
        return read_parquet(source, option)
    if suffix in CONLL:
        return read_conll(source, option)
    if suffix == ".csv":
        return read_csv(source, option)
    return read_tsv(source, option) if suffix == ".tsv" else read_json(source, option)
