"""``python -m server``: the server on loopback.  Settings come from the environment (WATTLE_*)."""

from __future__ import annotations

from types import FrameType

import uvicorn
from fastapi import FastAPI

from server.app import create_app
from store.settings import Settings

GRACE_SECONDS = 3  # for requests in hand


class Server(uvicorn.Server):
    """Ends the event streams when it is told to stop: they would go on for ever.  Their watchers connect again."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app, host=settings.host, port=settings.port, log_level=settings.log_level.lower(), access_log=False,
                server_header=False, timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )  # fmt: skip
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if hasattr(self._app.state, "service"):  # not yet, if it is stopped while it starts
            self._app.state.service.streams.ending = True
        super().handle_exit(sig, frame)


def main() -> None:
    settings = Settings()
    Server(create_app(settings), settings).run()


if __name__ == "__main__":
    main()
