"""What every request passes: loopback names only, no writes from other sites' pages, bounded bodies, headers that keep browsers strict.

There is no authentication yet, so a web page that the user happens to visit must not reach this server: neither by a name of its own
that resolves to 127.0.0.1 (host check), nor by posting a form to it (origin check).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.problems import problem

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY_BYTES = 262_144
MAX_TABLE_BYTES = 8 * 2**20  # about 20 000 cost entries
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_RAW_HEADERS]
            await send(message)

        limit = MAX_TABLE_BYTES if scope["path"].endswith("/table") else MAX_BODY_BYTES
        reason = _refused(scope["method"], Headers(scope=scope), limit)
        await (problem(*reason) if reason else self.app)(scope, _bounded(receive, limit), send_strict)


def _bounded(receive: Receive, limit: int) -> Receive:
    """A body that ends in 413 where it grows too large, whatever its length was said to be."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return receive_bounded


def _too_large(limit: int) -> str:
    remedy = "send the table in pieces, as wattle table import does" if limit == MAX_TABLE_BYTES else "no spec needs as many"
    return f"the body has more than {limit} bytes, the most that is read; {remedy}"


def _refused(method: str, headers: Headers, limit: int) -> tuple[int, str] | None:
    """Status and reason, or None for a request that may pass."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if _name(f"//{host}") not in LOOPBACK_NAMES:
        return 400, f"host {host!r} is not a name of this machine's loopback; use 127.0.0.1 or localhost"
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        return 413, _too_large(limit)
    if method in SAFE_METHODS:
        return None
    if (origin is not None and urlsplit(origin).netloc != host) or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, f"a page of another site ({origin or 'unknown'}) may not change anything here"
    return None


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
