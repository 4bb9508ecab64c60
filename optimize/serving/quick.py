"""A small server for a quick look: a page and `/v1/images`, on this machine, with the standard library.

For production there are Triton model repositories (`_repository.py`); this one draws one batch at a time.
"""

from __future__ import annotations

import base64
import errno
import io
import json
import logging
import signal
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from optimize.errors import EnvironmentLacks, UserError, unknown
from optimize.serving._drawing import Drawing

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)
LARGEST, MOST = 2**63 - 1, 64  # seed, images of a request
PAGE = Path(__file__).parent / "page.html"


def serve_forever(path: Path, runner: str | None, host: str, port: int, say: Callable[[str], Any]) -> None:
    """Serve the artifact at `path` until interrupted or terminated; `say` gets the line that tells where."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Drawing(path, runner) as drawing, open_server(drawing, host, port) as server:
        drawing.draw([0])  # whatever cannot work fails here, before anyone asks
        about, (address, bound) = drawing.describe(), server.server_address[:2]
        say(f"{about['artifact']} on {about['runner']} ({about['why']}): http://{address!s}:{bound}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")


def open_server(drawing: Drawing, host: str = "127.0.0.1", port: int = 8000) -> ThreadingHTTPServer:
    """A server bound to host and port (0: any free one), to be run by `serve_forever`; UserError where it cannot be."""
    handler = type("Handler", (_Handler,), {"drawing": drawing})
    try:
        return _Server((host, port), handler)
    except socket.gaierror:
        raise UserError(
            f"--host: {host} is no address of this machine. Use 127.0.0.1, or 0.0.0.0 for every one."
        ) from None
    except OverflowError:
        raise UserError(f"--port: {port} given, allowed 0 to 65535; 0 takes any free one.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port: {port} is in use. Choose another, or 0 for any free one.") from None
        raise EnvironmentLacks(f"serve: {host}:{port} cannot be opened ({error.strerror}). Choose another.") from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Handler(BaseHTTPRequestHandler):
    drawing: Drawing
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, /v1/model, /v1/images, or an error as JSON."""
        try:
            self._answer()
        except UserError as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except ConnectionError:
            self.close_connection = True  # nobody is there to be told
        except Exception as error:  # whatever a runner raises, the one who asked is told
            log.exception("%s", self.path)
            said = f"drawing failed: {type(error).__name__}: {error}"
            self._json({"error": said}, HTTPStatus.INTERNAL_SERVER_ERROR)

    do_HEAD = do_GET

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/":
            self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif parts.path == "/v1/model":
            self._json(self.drawing.describe())
        elif parts.path == "/v1/images":
            self._images(parts.query)
        else:
            allowed = "/, /v1/model, /v1/images"
            self._json({"error": f"{parts.path}: no such page. Allowed: {allowed}."}, HTTPStatus.NOT_FOUND)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses (a method, a malformed request) as JSON too; the connection ends."""
        said = f"{self.command}: this server answers GET and HEAD alone." if code == 501 else message or str(code)
        self.close_connection = True
        self._json({"error": said}, HTTPStatus.METHOD_NOT_ALLOWED if code == 501 else HTTPStatus(code))

    def _images(self, query: str) -> None:
        seeds, label, format = asked(query)
        drawn = self.drawing.draw(seeds, label)
        seen = pixels(drawn.images, self.drawing.model.limit)
        if format == "png":
            self._send(png(sheet(seen)), "image/png")
            return
        each = [
            {"seed": seed, "class": drawn.labels and drawn.labels[i], "png": base64.b64encode(png(image)).decode()}
            for i, (seed, image) in enumerate(zip(seeds, seen))
        ]
        about = {"runner": self.drawing.runner, "id": self.drawing.manifest.get("id", ""), "first": drawn.first}
        self._json({**about, "latency_ms": drawn.seconds * 1e3, "nfe": self.drawing.model.nfe, "images": each})

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, body: bytes, type: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """One line a request in the package's log, not on the terminal."""
        log.info("%s %s", self.address_string(), format % args)


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


def pixels(samples: np.ndarray, limit: float | None = 1.0) -> np.ndarray:
    """(N,H,W,C) uint8 of images (N,C,H,W) within +-`limit`; of latents, which have none, each scaled by its own largest
    number. A sample of two dims is a grey picture with a line for its first."""
    import numpy as np

    values = samples.astype(np.float64)
    if values.ndim == 3:
        values = values[:, None]
    if limit is None:
        values /= np.maximum(np.abs(values).max((1, 2, 3), keepdims=True), 1e-12)
    else:
        values /= limit
    return np.rint((values + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


def sheet(images: np.ndarray) -> np.ndarray:
    """All images (N,H,W,C) in one, as nearly square as it goes, row by row; cells left over are white."""
    import numpy as np

    n, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    cells = np.full((rows * columns, height, width, channels), 255, np.uint8)
    cells[:n] = images
    grid = cells.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)


def png(image: np.ndarray) -> bytes:
    """PNG file of (H,W,C) uint8, C 1 or 3; of more channels (a latent) the first three."""
    from PIL import Image

    shown = image[:, :, 0] if image.shape[2] < 3 else image[:, :, :3]
    out = io.BytesIO()
    Image.fromarray(shown.copy()).save(out, format="PNG")
    return out.getvalue()
