"""Errors as problem documents (RFC 9457, ``application/problem+json``), each with field, value, limit and remedy where it has them."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from server.views import ProblemDocument, ProblemView
from store.database import DatabaseUnavailable
from store.problems import InvalidSpec, Problem
from store.views import IdempotencyConflict

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
SHOWN = 200  # characters of a wrong value that are sent back
MOST_ERRORS = 50  # that are described; the others are counted

_TITLES = {
    400: ("bad-request", "Bad request"),
    403: ("forbidden", "Forbidden"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "Method not allowed"),
    409: ("conflict", "Conflict"),
    413: ("too-large", "Request too large"),
    415: ("unsupported-media-type", "Unsupported media type"),
    416: ("range-not-satisfiable", "Range not satisfiable"),
    422: ("invalid", "Invalid request"),
    500: ("internal", "Internal error"),
    503: ("unavailable", "Unavailable"),
}

log = logging.getLogger(__name__)


class Refusal(Exception):  # noqa: N818 - the server's answer, not a fault of the program
    """A request that is answered with a problem document."""

    def __init__(self, status: int, detail: str, errors: Sequence[Problem] = (), headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, tuple(errors), headers


def not_found(what: str, value: str, remedy: str) -> Refusal:
    message = f"there is no {what} {value}; {remedy}"
    return Refusal(404, message, [Problem(what, value, None, remedy, message)])


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses=`` of a route that can answer with these problems."""
    return {status: {"model": ProblemDocument, "description": _TITLES[status][1]} for status in sorted({*statuses, 500, 503})}


def problem(status: int, detail: str, errors: Sequence[Problem] = (), headers: Mapping[str, str] | None = None) -> Response:
    slug, title = _TITLES.get(status, ("error", "Error"))
    document = ProblemDocument(
        type=f"urn:wattle:{slug}", title=title, status=status, detail=detail, errors=[ProblemView.of(error) for error in errors]
    )
    return JSONResponse(document.model_dump(mode="json"), status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Every error of the application leaves as a problem document."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return problem(error.status, error.detail, error.errors, error.headers)

    @app.exception_handler(InvalidSpec)
    async def invalid(_: Request, error: InvalidSpec) -> Response:
        return problem(422, _summary(error.problems[0], len(error.problems)), error.problems)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        model = _body_model(request)
        errors = error.errors()
        found = [_problem_of(item, model) for item in errors[:MOST_ERRORS]]
        return problem(422, _summary(found[0], len(errors)), found)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        detail = str(error.detail)
        if error.status_code == 404:
            detail = f"there is no {request.url.path}; the API is described at /docs"
        elif error.status_code == 405:
            detail = f"{request.url.path} does not answer {request.method}; the API is described at /docs"
        return problem(error.status_code, detail, headers=error.headers)

    @app.exception_handler(IdempotencyConflict)
    async def conflict(_: Request, error: IdempotencyConflict) -> Response:
        found = Problem("header.Idempotency-Key", error.key, None, "use a new key for a new submission", str(error))
        return problem(409, str(error), [found])

    @app.exception_handler(DatabaseUnavailable)
    async def database(_: Request, error: DatabaseUnavailable) -> Response:
        log.error("%s", error)
        return problem(503, f"{error}; try again in {RETRY_SECONDS} s", headers={"Retry-After": str(RETRY_SECONDS)})

    @app.exception_handler(Exception)
    async def internal(_: Request, error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        return problem(500, "the server failed on this request; its log holds the reason")


def _summary(first: Problem, errors: int) -> str:
    more = f" (and {errors - 1} more)" if errors > 1 else ""
    return f"{first.message}{more}"


def _problem_of(item: Mapping[str, Any], model: type[BaseModel] | None) -> Problem:
    """A pydantic error in Wattle's words."""
    place, *path = item["loc"]
    field = ".".join(map(str, path)) or str(place)
    if place != "body" and path:
        field = f"{place}.{field}"
    kind, text = item["type"], str(item["msg"]).removeprefix("Value error, ")
    value, limit = _shown(item.get("input")), _limit(item.get("ctx") or {})
    if kind == "missing":
        return Problem(field, None, "required", "add it", f"{field} is missing; add it")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_keys(model, path[:-1])
        guess = difflib.get_close_matches(str(path[-1]), known, 1)
        remedy = f"did you mean {guess[0]}?" if guess else "remove it"
        return Problem(field, value, known or None, remedy, f"{field} is not a known key; {remedy}")
    if kind in ("json_invalid", "value_error"):
        return Problem(field, value, limit, text, f"{field}: {text}")
    rule = text.partition(", unable to parse")[0].replace("Input should", "it should", 1).replace("String should", "it should", 1)
    return Problem(field, value, limit, _remedy(rule), f"{field} is {value!r}: {rule}")


def _remedy(rule: str) -> str:
    """ "it should be X" as something to do."""
    what = rule.removeprefix("it should be ")
    if what == rule:
        return rule
    return f"give a value {what}" if what.startswith(("greater", "less")) else f"give {what}"


def _limit(context: Mapping[str, Any]) -> str | None:
    """What pydantic's context says is allowed, as text."""
    words = {
        "ge": "at least ", "gt": "greater than ", "le": "at most ", "lt": "less than ", "min_length": "length at least ",
        "max_length": "length at most ", "pattern": "matching ", "expected": "",
    }  # fmt: skip
    return next((f"{word}{context[key]}" for key, word in words.items() if key in context), None)


def _shown(value: Any) -> str | int | float | bool | None:
    """A wrong value as JSON can carry it: NaN and infinities by name, collections and long texts cut."""
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, int) or abs(value) < 2**53 else str(value)[:SHOWN]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _body_model(request: Request) -> type[BaseModel] | None:
    field = getattr(request.scope.get("route"), "body_field", None)
    annotation = field.field_info.annotation if field is not None else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _known_keys(model: type[BaseModel] | None, path: Sequence[Any]) -> list[str]:
    """The keys allowed at ``path`` of a nested model."""
    for step in path:
        field = model.model_fields.get(str(step)) if model else None
        annotation = field.annotation if field else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return sorted(model.model_fields) if model else []
