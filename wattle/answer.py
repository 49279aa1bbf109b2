"""How every command answers: one document for programs (``--json``), one rendering for people, one exit code.

Exit codes: 0 done, 1 the job failed or was cancelled, 2 wrong usage or refused by the server, 3 no server (or it can't answer now).
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from wattle.client import Document, ProblemError

PIPE_COLUMNS = 200
OK, JOB_ENDED_BADLY, REFUSED, NO_SERVER = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command says: ``document`` with ``--json``, ``human`` otherwise, and its exit code.

    ``then``: what it goes on to do, once that is said, until it ends.
    """

    document: Any
    human: RenderableType
    exit_code: int = OK
    then: Callable[[], object] | None = None


_answers_in_json: ContextVar[bool] = ContextVar("answers_in_json", default=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]


def answering(command: Callable[..., Answer]) -> Callable[..., None]:
    """Gives a command its ``--json``, prints its answer or the problem it met, and exits with the code for it."""

    @functools.wraps(command)
    def run(*args: Any, as_json: bool, **kwargs: Any) -> None:
        _answers_in_json.set(as_json)
        try:
            answer = command(*args, **kwargs)
        except (ProblemError, OSError) as problem:
            error = problem if isinstance(problem, ProblemError) else ProblemError(_of_the_system(problem))
            code = NO_SERVER if error.status >= 500 else REFUSED
            _say(as_json, error.document, problem_text(error.document), _console(stderr=True))
            raise typer.Exit(code) from None
        _say(as_json, answer.document, answer.human, _console())
        if answer.then is not None:
            answer.then()
        if answer.exit_code:
            raise typer.Exit(answer.exit_code)

    plain = inspect.signature(command, eval_str=True)
    flag = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    run.__signature__ = plain.replace(parameters=[*plain.parameters.values(), flag])  # type: ignore[attr-defined]  # typer reads it
    return run


def progress_console() -> Console:
    """Where the running command shows progress: stdout for people, stderr when stdout is kept for one JSON document."""
    return _console(stderr=_answers_in_json.get())


def problem_text(document: Document) -> RenderableType:
    """A problem document as a few lines: what, then one block per field with value, limit and remedy."""
    title, detail, errors = str(document.get("title", "Problem")), str(document.get("detail") or ""), document.get("errors") or []
    said = any(error.get("message") and error["message"] in detail for error in errors)  # the server repeats its first error there
    lines: list[RenderableType] = [Text.assemble((title, "bold red"), "" if said or not detail else f": {detail}")]
    for error in errors:
        lines.append(Text.assemble("  ", (str(error.get("field") or "spec"), "bold"), f": {error.get('message') or ''}"))
        shown = [key for key in ("value", "limit", "remedy") if error.get(key) not in (None, "", [])]
        told = error.get("message") or ""  # most messages end in the remedy
        lines += [Text(f"    {key}: {_plain(error[key])}") for key in shown if key != "remedy" or _plain(error[key]) not in told]
    return Group(*lines)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _of_the_system(error: OSError) -> Document:
    detail = f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    return {"type": "urn:wattle:system", "title": "Not possible here", "status": 400, "detail": detail}


def _say(as_json: bool, document: Any, human: RenderableType, console: Console) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=2, default=str))
    else:
        console.print(human)
    sys.stdout.flush()  # what follows may be another program in this process


def _console(stderr: bool = False) -> Console:
    """Wide lines where no terminal says how wide it is, so that files and pipes get whole rows."""
    console = Console(stderr=stderr)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(stderr=stderr, width=PIPE_COLUMNS)
