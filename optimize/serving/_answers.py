"""What the small server answers, a WSGI application: the page, /v1/model, /v1/images, and errors as JSON.

One request draws at a time and few may wait; one whose asker is gone stops drawing. Strangers are told nothing of where
the artifact lies.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from optimize.errors import UserError, unknown
from optimize.serving._drawing import Abandoned, Drawing
from optimize.serving._guard import refusal
from optimize.serving._pictures import pixels, png, sheet

log = logging.getLogger(__name__)
LARGEST, MOST = 2**63 - 1, 64  # seed, images of a request
WAITING = 16  # requests that may wait for the one that draws
PAGE = Path(__file__).parent / "page.html"
PAGES = ("/", "/v1/model", "/v1/images")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Answer:
    """A response, whole."""

    status: HTTPStatus
    body: bytes
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Answers:
    """The application: `drawing` draws, `hosts` are the names that the server answers to."""

    def __init__(self, drawing: Drawing, hosts: frozenset[str]) -> None:
        self.drawing, self.hosts = drawing, hosts
        self._places = threading.BoundedSemaphore(1 + WAITING)

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI. A HEAD request gets the headers alone."""
        answer = self._told(environ)
        headers = {**HEADERS, "Content-Type": answer.kind, "Content-Length": str(len(answer.body))}
        start_response(f"{answer.status.value} {answer.status.phrase}", [*headers.items(), *answer.headers])
        log.info(
            "%s %s %s %d", environ.get("REMOTE_ADDR"), environ["REQUEST_METHOD"], environ["PATH_INFO"], answer.status
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _told(self, environ: Mapping[str, Any]) -> Answer:
        """The answer, or what is wrong, as JSON."""
        try:
            return self._answer(environ)
        except UserError as error:
            return failed(HTTPStatus.BAD_REQUEST, str(error))
        except Abandoned:
            return failed(HTTPStatus.SERVICE_UNAVAILABLE, "the server is being stopped")  # or nobody is there
        except Exception as error:  # whatever a runner raises, the one who asked is told
            log.exception("%s", environ["PATH_INFO"])
            said = self.drawing.without_place(f"{type(error).__name__}: {error}")
            return failed(HTTPStatus.INTERNAL_SERVER_ERROR, f"drawing failed: {said}")

    def _answer(self, environ: Mapping[str, Any]) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if said := refusal(environ, self.hosts):
            return failed(HTTPStatus.FORBIDDEN, said)
        if method not in ("GET", "HEAD"):
            said = f"{method[:40]}: this server answers GET and HEAD alone."
            return failed(HTTPStatus.METHOD_NOT_ALLOWED, said, ("Allow", "GET, HEAD"))
        if path == "/":
            return Answer(HTTPStatus.OK, PAGE.read_bytes(), "text/html; charset=utf-8")
        if path == "/v1/model":
            return found(self.drawing.describe())
        if path == "/v1/images":
            return self._images(environ)
        return failed(HTTPStatus.NOT_FOUND, f"{path[:80]}: no such page. Allowed: {', '.join(PAGES)}.")

    def _images(self, environ: Mapping[str, Any]) -> Answer:
        seeds, label, format = asked(environ["QUERY_STRING"])
        if not self._places.acquire(blocking=False):
            said = f"busy: {WAITING} requests wait already. Ask again later."
            return failed(HTTPStatus.SERVICE_UNAVAILABLE, said, ("Retry-After", "1"))
        try:
            drawn = self.drawing.draw(seeds, label, environ.get("waitress.client_disconnected", lambda: False))
        finally:
            self._places.release()
        seen = pixels(drawn.images, self.drawing.model.limit)
        if format == "png":
            return Answer(HTTPStatus.OK, png(sheet(seen)), "image/png")
        each = [
            {"seed": seed, "class": drawn.labels and drawn.labels[i], "png": base64.b64encode(png(image)).decode()}
            for i, (seed, image) in enumerate(zip(seeds, seen))
        ]
        about = {"runner": self.drawing.runner, "id": self.drawing.manifest.get("id", ""), "first": drawn.first}
        times = {"latency_ms": drawn.seconds * 1e3, "nfe": self.drawing.model.nfe}
        return found({**about, **times, "images": each})


def found(value: Any) -> Answer:
    """A JSON answer."""
    return Answer(HTTPStatus.OK, json.dumps(value).encode())


def failed(status: HTTPStatus, said: str, *headers: tuple[str, str]) -> Answer:
    """What is wrong, as JSON."""
    return Answer(status, json.dumps({"error": said}).encode(), headers=headers)


def asked(query: str) -> tuple[list[int], int | None, str]:
    """(seeds, class, format) of a query such as seed=0&count=16&class=3&format=png; UserError naming what is wrong."""
    given = {k: v[-1] for k, v in parse_qs(query, keep_blank_values=True).items()}
    for name in given:
        if name not in ("seed", "count", "class", "format"):
            raise unknown("query", name, ("seed", "count", "class", "format"))
    count = _number(given.get("count", "1"), "count", 1, MOST)
    first = _number(given.get("seed", "0"), "seed", 0, LARGEST - count + 1)
    label = _number(given["class"], "class", 0, LARGEST) if given.get("class") else None
    format = given.get("format", "json")
    if format not in ("json", "png"):
        raise unknown("format", format, ("json", "png"))
    return list(range(first, first + count)), label, format


def _number(text: str, name: str, low: int, high: int) -> int:
    digits = text.isascii() and text.isdigit() and len(text) < 20
    if not digits or not low <= int(text) <= high:
        raise UserError(f'{name}: "{text[:40]}" given, allowed whole numbers from {low} to {high}')
    return int(text)
