"""``wattle table``: cost tables as files, taken from one store and put into another with their origin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich.text import Text

from wattle import connection, parquet
from wattle.answer import Answer, answering
from wattle.client import Document, ProblemError

PIECE = 10_000  # entries in one request: the server takes 8 MB
Format = Literal["json", "csv", "parquet"]

app = typer.Typer(no_args_is_help=True, help="Cost tables as files: export, import.")


@app.command("export")
@answering
def export_table(
    device: Annotated[str, typer.Argument(help="Device whose table it is.", metavar="DEVICE")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; its ending says the format. (default: DEVICE.json)")
    ] = None,
    file_format: Annotated[
        Format | None,
        typer.Option("--format", help="JSON and Parquet hold all and can be imported; CSV holds the entries alone, for a spreadsheet."),
    ] = None,
) -> Answer:
    """Write a device's cost table, with what it was measured on, to a file."""
    ending = output.suffix.removeprefix(".") if output else ""
    chosen = file_format or (ending if ending in get_args(Format) else "json")
    path = output or Path(f"{device}.{chosen}")
    with connection.connect() as client:
        if chosen == "parquet":
            parquet.write(client.table(device), path)
        else:
            client.save_table(device, path, chosen)
    return Answer({"device": device, "file": str(path), "bytes": path.stat().st_size}, Text(f"{path}: {path.stat().st_size:,} bytes"))


@app.command("import")
@answering
def import_table(
    file: Annotated[Path, typer.Argument(help="JSON or Parquet: `wattle table export`, or `python -m profiler`.", metavar="FILE")],
    device: Annotated[str | None, typer.Option("--device", help="Name to keep it under. (default: the one in the file)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only check the file, keep nothing.")] = False,
) -> Answer:
    """Add a cost table that was measured elsewhere.  All of the file is checked before anything is kept."""
    document = read_table(file)
    name = device or str(document["device"])
    pieces = list(_pieces(document))
    with connection.connect() as client:
        for checking in (True, False)[: 1 if dry_run else 2]:
            for piece in pieces:
                answer = client.import_table(name, piece, dry_run=checking)
    counts = {"entries": len(document["entries"]), "calibrations": len(document["calibrations"]), "dry_run": dry_run}
    done = "can be added to" if dry_run else "are in"
    text = Text(f"{counts['entries']} entries and {counts['calibrations']} calibrations {done} the table of {name}")
    expired = answer["device"]["expired"]
    return Answer({**counts, "device": answer["device"]}, text if expired is None else text.append(f"\nwarning: {expired}", style="yellow"))


def read_table(file: Path) -> Document:
    """The document in the file; what is wrong inside it the server says.  ProblemError if there is no table in it."""
    try:
        content = parquet.read(file) if file.suffix == parquet.SUFFIX else _read_json(file)
    except ValueError as error:
        raise _no_table(file, str(error)) from error
    if isinstance(content, Mapping) and isinstance(content.get("table"), Mapping):  # of `python -m profiler`
        content = {**content["table"], "fingerprint": content.get("fingerprint")}
    if not isinstance(content, Mapping) or not isinstance(content.get("entries"), list) or "device" not in content:
        raise _no_table(file, "holds no device with entries")
    return {"calibrations": [], **content}


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"is no JSON ({error})") from error


def _pieces(document: Document) -> Iterator[Document]:
    """The document in parts that a request can carry; calibrations come last, so that no network is priced from half a table."""
    entries = document["entries"]
    starts = range(0, max(1, len(entries)), PIECE)
    for start in starts:
        last = start == starts[-1]
        yield {**document, "entries": entries[start : start + PIECE], "calibrations": document["calibrations"] if last else []}


def _no_table(file: Path, reason: str) -> ProblemError:
    detail = f"{file}: {reason}; give a file that `wattle table export` or `python -m profiler --output` wrote"
    return ProblemError({"type": "urn:wattle:bad-table", "title": "No cost table", "status": 422, "detail": detail})
