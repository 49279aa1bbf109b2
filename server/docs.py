"""The API's reference at /docs: one page made from the OpenAPI document, with no script and nothing loaded from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

router = APIRouter()


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    schema = request.app.openapi()
    operations = [(method, path, each) for path, methods in schema["paths"].items() for method, each in methods.items()]
    body = "".join(_operation(*operation) for operation in operations)
    info = {name: escape(schema["info"][name]) for name in ("title", "version", "description")}
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{info["title"]} API</title>'
    intro = f'<p>{info["description"]} Machines read <a href="/openapi.json">/openapi.json</a>.</p>'
    page = f"<h1>{info['title']} API {info['version']}</h1>{intro}{body}{_models(schema)}"
    return HTMLResponse(f'<!doctype html><html lang="en"><head>{head}</head><body>{page}</body></html>')


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    title = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
    body = operation.get("requestBody", {}).get("content", {})
    sent = "".join(f"<p>Body: {escape(kind)}, {_type(content.get('schema', {}))}</p>" for kind, content in body.items())
    rows = "".join(
        f"<tr><td><code>{escape(each['name'])}</code> ({each['in']}{', required' if each.get('required') else ''})"
        f"<td>{_type(each['schema'])}<td>{escape(each.get('description', ''))}"
        for each in operation.get("parameters", [])
    )
    answers = "".join(f"<li>{status}: {escape(each['description'])}" for status, each in operation["responses"].items())
    return f"{title}{sent}{_table(rows)}<ul>{answers}</ul>"


def _models(schema: dict[str, Any]) -> str:
    return "".join(
        f'<h2 id="{name}">{name}</h2><p>{escape(model.get("description", ""))}</p>' + _table("".join(
            f"<tr><td><code>{escape(key)}</code>{' (required)' if key in model.get('required', []) else ''}"
            f"<td>{_type(each)}<td>{escape(each.get('description', ''))}"
            for key, each in model.get("properties", {}).items()
        ))
        for name, model in schema["components"]["schemas"].items()
    )  # fmt: skip


def _table(rows: str) -> str:
    return f"<table><thead><tr><th>name<th>type<th>meaning<tbody>{rows}</table>" if rows else ""


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with its bounds and default; models are links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if options := schema.get("anyOf") or schema.get("allOf"):
        words = " or ".join(map(_type, options))
    elif "enum" in schema:
        words = escape(", ".join(map(str, schema["enum"])))
    elif "items" in schema:
        words = f"list of {_type(schema['items'])}"
    else:
        words = escape(str(schema.get("type", "anything")))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "pattern": "matching"}
    limits = "".join(f" {sign} {escape(str(schema[key]))}" for key, sign in bounds.items() if key in schema)
    default = f"; default {escape(str(schema['default']))}" if schema.get("default") is not None else ""
    return f"{words}{limits}{default}"
