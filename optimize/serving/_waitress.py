"""The small server's sockets, by waitress: bounds on what connections may hold, and their time.

waitress reads requests in one loop and calls the application in threads, so that a request that is sent by halves holds a
connection and no thread. What it lacks is added here: a request must be whole within the time-out however its bytes drip
in, and what it refuses itself is said as JSON.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What connections may take."""

    timeout_s: int = 10
    """Whole seconds from a request's first byte to its last, and of silence between requests."""
    connections: int = 512
    """Open connections; further ones wait to be accepted."""
    header_bytes: int = 16 * 2**10
    """Request line and headers."""
    body_bytes: int = 64 * 2**10
    """Body, of which no request needs any."""
    threads: int = 24
    """Requests under way: those that draw or wait to, and a few more, so that the rest are answered meanwhile."""


class Server:
    """A `with` block around a bound socket; `serve_forever` answers until `shutdown` or Ctrl-C."""

    def __init__(self, application: Callable[..., Any], bound: socket.socket, limits: Limits) -> None:
        self.server_address = bound.getsockname()
        self._map: dict[int, Any] = {}
        self._server = create_server(
            application,
            map=self._map,
            sockets=[bound],
            threads=limits.threads,
            connection_limit=limits.connections + 2,  # the listening socket and the loop's own
            channel_timeout=limits.timeout_s,
            cleanup_interval=1,
            max_request_header_size=limits.header_bytes,
            max_request_body_size=limits.body_bytes,
            channel_request_lookahead=1,  # so that a client who is gone is noticed
            outbuf_high_watermark=2**40,  # one who does not read holds a file, no thread
            asyncore_use_poll=True,
            ident=None,
        )
        self._server.channel_class = _Channel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: Any) -> None:
        self._server.task_dispatcher.shutdown()
        wasyncore.close_all(self._map)

    def serve_forever(self) -> None:
        """Answer until Ctrl-C or `shutdown`."""
        with _heard():
            self._server.run()

    def shutdown(self) -> None:
        """End `serve_forever`; from any thread."""
        self._server.trigger.pull_trigger(lambda: wasyncore.close_all(self._map))


class _Refusal(ErrorTask):
    """What waitress refuses, as JSON; the connection ends."""

    def execute(self) -> None:
        error = self.request.error
        body = json.dumps({"error": f"{error.reason}: {error.body}"}).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    """A connection whose time runs from a request's first byte, where waitress counts from the latest."""

    error_task_class = _Refusal
    last_activity: float

    def handle_read(self) -> None:
        begun, since = self.request, self.last_activity
        super().handle_read()
        if begun is not None and self.request is begun:
            self.last_activity = since

    def handle_error(self) -> None:
        """What no parser expected ends the connection."""
        log.info("a request from %s was malformed", self.addr[0], exc_info=True)
        self.handle_close()


class _Relay(logging.Handler):
    """waitress' own log, in the package's."""

    def emit(self, record: logging.LogRecord) -> None:
        log.info("%s", record.getMessage(), exc_info=record.exc_info)


@contextmanager
def _heard() -> Iterator[None]:
    """Within the block, waitress' log goes to the package's and not to the terminal."""
    logger, relay = logging.getLogger("waitress"), _Relay()
    before = logger.propagate
    logger.addHandler(relay)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(relay)
        logger.propagate = before
