"""A small server for a quick look: a page and `/v1/images`, on this machine.

For production there are Triton model repositories (`_repository.py`); this one draws one batch at a time. What it answers
is in `_answers.py`, whom in `_guard.py`, its sockets are waitress' (`_waitress.py`).
"""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import EnvironmentLacks, UserError
from optimize.serving._answers import Answers
from optimize.serving._drawing import Drawing
from optimize.serving._guard import answered

if TYPE_CHECKING:
    from optimize.serving._waitress import Limits, Server


def serve_forever(
    path: Path,
    runner: str | None,
    host: str,
    port: int,
    say: Callable[[str], Any],
    allow_hosts: Iterable[str] = (),
) -> None:
    """Serve the artifact at `path` until interrupted or terminated; `say` gets the line that tells where.

    Raises EnvironmentLacks where waitress is not installed, before anything is loaded, and what `open_server` raises."""
    _limits()
    answered(host, allow_hosts)  # a wrong name is told before the model loads
    with Drawing(path, runner) as drawing, open_server(drawing, host, port, allow_hosts) as server, _told(drawing):
        drawing.draw([0])  # whatever cannot work fails here, before anyone asks
        about, (address, bound) = drawing.describe(), server.server_address[:2]
        shown = f"[{address}]" if ":" in address else address
        say(f"{drawing.folder} on {about['runner']} ({about['why']}): http://{shown}:{bound}")
        server.serve_forever()
        say("stopped")


def open_server(
    drawing: Drawing,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_hosts: Iterable[str] = (),
    limits: Limits | None = None,
) -> Server:
    """A server bound to host and port (0: any free one), to be run by its `serve_forever`; it answers to the names of this
    machine, to `host` and to `allow_hosts`.

    Raises UserError where it cannot be bound or a name is none, EnvironmentLacks where waitress is not installed."""
    limits, hosts = limits or _limits(), answered(host, allow_hosts)
    from optimize.serving._waitress import Server

    return Server(Answers(drawing, hosts), _bound(host, port), limits)


def _limits() -> Limits:
    try:
        from optimize.serving._waitress import Limits
    except ImportError as error:
        raise EnvironmentLacks(
            f'serve: waitress is not installed ({error}). Install it: pip install "diffusion-optimize[serve]", or pip install waitress.'
        ) from error
    return Limits()


def _bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address of this machine."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port: {port} given, allowed 0 to 65535; 0 takes any free one.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except (socket.gaierror, UnicodeError):
        raise UserError(
            f"--host: {host[:80]} is no address of this machine. Use 127.0.0.1, or 0.0.0.0 for every one."
        ) from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port: {port} is in use. Choose another, or 0 for any free one.") from None
        raise EnvironmentLacks(f"serve: {host}:{port} cannot be opened ({error.strerror}). Choose another.") from error
    return made


@contextmanager
def _told(drawing: Drawing) -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM stop the drawing under way and interrupt."""

    def stop(number: int, frame: Any) -> None:
        drawing.stop()
        signal.default_int_handler(number, frame)

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
