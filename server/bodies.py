"""Job specs may come as JSON or YAML.  YAML is turned into JSON before FastAPI looks at it, so that both meet the same checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import yaml
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from server.problems import Refusal

YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml")


class _NoAliases(yaml.SafeLoader):
    """Plain data only.  An alias could unfold a few lines into gigabytes of JSON."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value out")
        return super().compose_node(parent, index)


class SpecRoute(APIRoute):
    """A route whose body is a spec: ``application/json`` or YAML; 415 for anything else, 400 for YAML that can't be read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_spec(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind in YAML_TYPES:
                request = _as_json(request, await request.body())
            elif kind != "application/json":
                raise Refusal(415, f"content type {kind or '(none)'} is not read; send application/json or application/yaml")
            return await handle(request)

        return handle_spec


def also_yaml(model: str) -> dict[str, Any]:
    """``openapi_extra=`` that documents the YAML form of a body."""
    return {"requestBody": {"content": {"application/yaml": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}}


def _as_json(request: Request, body: bytes) -> Request:
    """The same request with its YAML body as JSON.  Dates, which JSON lacks, become text."""
    try:
        document = yaml.load(body, _NoAliases)  # noqa: S506  (a SafeLoader)
        content = json.dumps(document, default=str).encode()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, TypeError, ValueError) as error:
        raise Refusal(400, f"the body can't be read as YAML: {error}") from error
    headers = [(name, value) for name, value in request.scope["headers"] if name not in (b"content-type", b"content-length")]
    scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    return Request(scope, receive)
