"""A cost table as a Parquet file: one column per field of an entry, and all that is not an entry in the file's metadata.

A table of a million entries takes a few megabytes so, and analysis tools read its columns as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costs.shapes import LayerShape
from costs.table import CostEntry, Setting, flat, flat_fields
from wattle.client import Document, ProblemError, whole_or_none

if TYPE_CHECKING:
    import pyarrow

SUFFIX = ".parquet"
_METADATA = b"wattle"  # of the file: what the document holds beside its entries, as JSON
_TYPES = {"int": "int64", "float": "float64", "float | None": "float64", "bool": "bool"}  # all others are words


def write(document: Mapping[str, Any], path: Path) -> None:
    """Writes a table document, as ``Client.table`` gives it.  ProblemError without pyarrow."""
    _check_installed(path)
    import pyarrow
    from pyarrow import parquet

    rest = {name: value for name, value in document.items() if name != "entries"}
    schema = _schema().with_metadata({_METADATA: json.dumps(rest).encode()})
    with whole_or_none(path) as part:
        parquet.write_table(pyarrow.Table.from_pylist(list(map(flat, document["entries"])), schema), part)


def read(path: Path) -> Document:
    """The document that ``write`` wrote.  ValueError for a file that holds none, ProblemError without pyarrow."""
    _check_installed(path)
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"is no Parquet ({error})") from error
    if _METADATA not in (table.schema.metadata or {}) or set(table.schema.names) != set(_schema().names):
        raise ValueError("is a Parquet file of something else")
    return {**json.loads(table.schema.metadata[_METADATA]), "entries": [_nested(row) for row in table.to_pylist()]}


def _schema() -> pyarrow.Schema:
    import pyarrow

    return pyarrow.schema([(field.name, pyarrow.type_for_alias(_TYPES.get(str(field.type), "string"))) for field in flat_fields()])


def _nested(row: Mapping[str, Any]) -> Document:
    """The entry whose fields are columns of this row."""
    parts = {"shape": LayerShape, "setting": Setting}
    nested = {part: {field.name: row[field.name] for field in fields(of)} for part, of in parts.items()}
    return {**nested, **{field.name: row[field.name] for field in fields(CostEntry) if field.name not in parts}}


def _check_installed(path: Path) -> None:
    if find_spec("pyarrow") is None:
        detail = f"{path.name}: Parquet needs the package pyarrow, which is missing; run `pip install 'wattle-nas[parquet]'`, or use JSON"
        raise ProblemError({"type": "urn:wattle:missing-package", "title": "pyarrow is not installed", "status": 422, "detail": detail})
