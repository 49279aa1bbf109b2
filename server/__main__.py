"""``python -m server``: the server on loopback.  Settings come from the environment (WATTLE_*)."""

from __future__ import annotations

import uvicorn

from server.app import create_app
from store.settings import Settings

GRACE_SECONDS = 3  # for requests in hand; event streams would go on for ever, and their watchers connect again


def main() -> None:
    settings = Settings()
    uvicorn.run(
        create_app(settings), host=settings.host, port=settings.port, log_level=settings.log_level.lower(), access_log=False,
        server_header=False, timeout_graceful_shutdown=GRACE_SECONDS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
