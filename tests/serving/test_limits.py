"""The small server under strain, over real sockets: half requests, too many of them, too large ones, askers who leave."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimize.errors import EnvironmentLacks
from optimize.serving import _answers, quick
from optimize.serving._drawing import Drawn
from optimize.serving._waitress import Limits

HOST = b"Host: localhost\r\n"


class Still:
    """A drawing that waits to be let go, and notes who asked."""

    runner, manifest, folder = "torch", {"id": "an id"}, Path("/home/someone/secret")
    model = SimpleNamespace(limit=1.0, nfe=1)

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Semaphore(0)
        self.go.set()

    def draw(self, seeds: list[int], label: Any, gone: Any) -> Drawn:
        self.begun.release()
        assert self.go.wait(20)
        return Drawn(np.zeros((len(seeds), 1, 4, 4), np.float32), None, 0.1, False)

    def describe(self) -> dict[str, Any]:
        return {"runner": self.runner}

    def without_place(self, text: str) -> str:
        return text


@contextmanager
def serving(drawing: Any, **limits: int) -> Iterator[int]:
    with quick.open_server(drawing, port=0, limits=Limits(**limits)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    made.sendall(sent)
    return made


def answer(connection: socket.socket) -> tuple[int, Any]:
    """(status, JSON or bytes) of what comes until the other side closes."""
    with connection:
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if b"application/json" in head else body


def ask(port: int, line: bytes = b"GET /v1/model HTTP/1.1", more: bytes = HOST) -> tuple[int, Any]:
    return answer(connect(port, line + b"\r\n" + more + b"Connection: close\r\n\r\n"))


def ends(connection: socket.socket) -> float:
    """Seconds until the other side closes."""
    start = time.monotonic()
    assert connection.recv(1) == b""
    return time.monotonic() - start


def test_sixty_half_sent_requests_do_not_hold_the_next_and_end_in_time() -> None:
    with serving(Still(), timeout_s=1) as port:
        halves = [connect(port, b"GET /v1/images HTTP/1.1\r\nHost: loc") for _ in range(60)]
        bodies = [connect(port, b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nhal") for _ in range(5)]
        silent = connect(port)
        before = threading.active_count()
        assert ask(port) == (200, {"runner": "torch"})
        assert ask(port, b"GET /v1/images HTTP/1.1")[0] == 200
        for half in (*halves, *bodies, silent):
            ends(half)
            half.close()
        assert threading.active_count() == before


def test_bytes_that_drip_in_do_not_lengthen_the_time_of_a_request() -> None:
    with serving(Still(), timeout_s=1) as port:
        slow, gone, start = connect(port, b"GET"), False, time.monotonic()
        slow.settimeout(0.1)
        while not gone and time.monotonic() - start < 15:
            try:
                slow.sendall(b" ")
                gone = slow.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                gone = True
        assert gone
        slow.close()


def test_a_kept_connection_answers_again_and_ends_when_idle() -> None:
    with serving(Still(), timeout_s=1) as port:
        kept = connect(port)
        for _ in range(2):
            kept.sendall(b"GET /v1/model HTTP/1.1\r\n" + HOST + b"\r\n")
            got = b""
            while not got.endswith(b'{"runner": "torch"}'):
                got += kept.recv(65536)
            assert got.startswith(b"HTTP/1.1 200")
        ends(kept)
        kept.close()


def test_connections_are_bounded_and_those_beyond_are_answered_when_others_end() -> None:
    with serving(Still(), timeout_s=1, connections=5) as port:
        halves = [connect(port, b"GET / HTTP/1.1\r\n") for _ in range(5)]
        assert ask(port)[0] == 200  # once the halves are over
        for half in halves:
            half.close()


def test_those_who_may_not_wait_are_told_to_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_answers, "WAITING", 2)
    still = Still()
    still.go.clear()
    with serving(still, threads=8) as port:
        waiting = [
            connect(port, b"GET /v1/images HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n") for _ in range(3)
        ]
        assert all(still.begun.acquire(timeout=20) for _ in waiting)
        status, said = ask(port, b"GET /v1/images HTTP/1.1")
        assert (status, said["error"]) == (503, "busy: 2 requests wait already. Ask again later.")
        assert ask(port)[0] == 200  # what draws nothing is answered still
        still.go.set()
        assert [answer(connection)[0] for connection in waiting] == [200] * 3
        assert ask(port, b"GET /v1/images HTTP/1.1")[0] == 200


@pytest.mark.parametrize(
    ("line", "more", "status", "said"),
    [
        (b"GET / HTTP/1.1", HOST + b"X: " + b"a" * 20_000 + b"\r\n", 431, "Request Header Fields Too Large"),
        (b"POST / HTTP/1.1", HOST + b"Content-Length: 1000000000\r\n", 413, "Request Entity Too Large"),
        (b"GET / HTTP/1.1", HOST + b"Content-Length: x\r\n", 400, "Bad Request: Content-Length is invalid"),
        (b"GET / HTTP/1.1", HOST + b"no colon\r\n", 400, "Bad Request"),
        (b"GET /v1/model HTTP/1.1", b"", 403, 'Host: "" is no name of this server'),
        (b"GET /v1/model HTTP/1.1", b"Host: evil.example\r\n", 403, 'Host: "evil.example" is no name'),
        (b"GET /v1/model HTTP/1.1", HOST + HOST, 403, 'Host: "localhost, localhost" is no name'),
        (b"GET /v1/images HTTP/1.1", HOST + b"Sec-Fetch-Site: cross-site\r\n", 403, "another site's page asks"),
        (b"DELETE / HTTP/1.1", HOST, 405, "DELETE: this server answers GET and HEAD alone."),
        (b"GET /v9 HTTP/1.1", HOST, 404, "/v9: no such page. Allowed: /, /v1/model, /v1/images."),
        (b"GET /v1/images?count=99 HTTP/1.1", HOST, 400, 'count: "99" given'),
    ],
)
def test_what_is_refused_is_json(line: bytes, more: bytes, status: int, said: str) -> None:
    with serving(Still()) as port:
        got, body = ask(port, line, more)
        assert got == status and said in body["error"], body
        assert ask(port)[0] == 200


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00" * 40, b"GET http://[ HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"\r\n\r\n\x00\xff\r\n\r\n"])  # fmt: skip
def test_what_is_no_request_ends_its_connection_alone(sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(Still(), timeout_s=1) as port:
        with connect(port, sent) as odd:
            while odd.recv(65536):
                pass
        assert ask(port)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_page_says_nothing_of_where_things_lie_and_may_load_nothing_from_elsewhere() -> None:
    with serving(Still()) as port:
        with connect(port, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n") as connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
        shown = head.partition(b"\r\n\r\n")[0].decode()
        for line in ("Content-Security-Policy: default-src 'none'", "X-Content-Type-Options: nosniff", "Cross-Origin-Resource-Policy: same-origin", "Cache-Control: no-store"):  # fmt: skip
            assert line in shown
        assert "Server:" not in shown and "waitress" not in shown


def test_without_waitress_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimize.serving._waitress", None)
    with pytest.raises(
        EnvironmentLacks, match=r'waitress is not installed .*pip install "diffusion-optimize\[serve\]"'
    ):
        quick.serve_forever(Path("nowhere"), None, "127.0.0.1", 0, print)
