"""How every command answers: one document for programs (``--json``), one rendering for people, one exit code.

Exit codes: 0 done, 1 the job failed or was cancelled, 2 wrong usage or refused by the server, 3 no server (or it can't answer now).
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec

import click
import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from wattle.client import Document, ProblemError

P = ParamSpec("P")

PIPE_COLUMNS = 200
OK, JOB_ENDED_BADLY, REFUSED, NO_SERVER = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command says: ``document`` with ``--json``, ``human`` otherwise, and its exit code."""

    document: Any
    human: RenderableType
    exit_code: int = OK


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]


def answering(command: Callable[P, Answer]) -> Callable[..., None]:
    """Gives a command its ``--json``, prints its answer or the problem it met, and exits with the code for it."""

    @functools.wraps(command)
    def run(*args: P.args, as_json: bool, **kwargs: P.kwargs) -> None:
        try:
            answer = command(*args, **kwargs)
        except ProblemError as error:
            code = NO_SERVER if error.status >= 500 else REFUSED
            _say(as_json, error.document, problem_text(error.document), _console(stderr=True))
            raise typer.Exit(code) from None
        _say(as_json, answer.document, answer.human, _console())
        if answer.exit_code:
            raise typer.Exit(answer.exit_code)

    plain = inspect.signature(command, eval_str=True)
    flag = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    run.__signature__ = plain.replace(parameters=[*plain.parameters.values(), flag])  # type: ignore[attr-defined]  # typer reads it
    return run


def progress_console() -> Console:
    """Where the running command shows progress: stdout for people, stderr when stdout is kept for one JSON document."""
    return _console(stderr=bool(click.get_current_context().params.get("as_json")))


def problem_text(document: Document) -> RenderableType:
    """A problem document as a few lines: what, then one block per field with value, limit and remedy."""
    title, detail = str(document.get("title", "Problem")), str(document.get("detail") or "")
    lines: list[RenderableType] = [Text.assemble((f"{title}", "bold red"), f": {detail}" if detail else "")]
    for error in document.get("errors") or []:
        lines.append(Text.assemble("  ", (str(error.get("field") or "spec"), "bold"), f": {error.get('message') or ''}"))
        lines += [Text(f"    {key}: {error[key]}") for key in ("value", "limit", "remedy") if error.get(key) not in (None, "")]
    return Group(*lines)


def _say(as_json: bool, document: Any, human: RenderableType, console: Console) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=2, default=str))
    else:
        console.print(human)


def _console(stderr: bool = False) -> Console:
    """Wide lines where no terminal says how wide it is, so that files and pipes get whole rows."""
    console = Console(stderr=stderr)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(stderr=stderr, width=PIPE_COLUMNS)
