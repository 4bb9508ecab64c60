"""A real Triton server on this machine, without a GPU: the tritonserver inside the wheel nvidia-pytriton.

It gets an environment of its own: its Python backend returns empty outputs with numpy 2. `served` is a `with` block
around a running server; at its end the server and all it started are gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optimize" / "triton"
SERVER = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")  # its tritonserver is 2.51
STARTS = 3  # attempts; another process may take a port between its choice and its use


def environment(cache: Path = CACHE) -> Path:
    """The Python of an environment with tritonserver, tritonclient and the ONNX Runtime installed here; made from the
    package index where it is not there yet, by one process at a time."""
    wanted = [*SERVER, f"onnxruntime=={version('onnxruntime')}"]
    folder = cache / f"python{sys.version_info.major}.{sys.version_info.minor}"
    python, ready = folder / "bin" / "python", folder / "ready.json"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists() or json.loads(ready.read_text()) != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
            ready.write_text(json.dumps(wanted))
    return python


@dataclass(frozen=True)
class Server:
    """A running server: its ports on 127.0.0.1, its process and its log."""

    http: int
    grpc: int
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> Any:
        """JSON of an HTTP answer."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            return json.loads(answer.read() or b"null")

    def counts(self, model: str) -> tuple[int, int]:
        """(images drawn, executions) of a model so far, from the server's statistics."""
        (found,) = self.get(f"/v2/models/{model}/stats")["model_stats"]
        return int(found["inference_count"]), int(found["execution_count"])


@contextmanager
def served(python: Path, repository: Path, work: Path, ready_s: float = 60.0) -> Iterator[Server]:
    """A server of a model repository that answers; RuntimeError with the end of its log where it does not come up."""
    site = Path(_said(python, "import sysconfig; print(sysconfig.get_paths()['purelib'])"))
    backends = _backends(site, work)
    with ExitStack() as stack:
        for attempt in range(STARTS):
            server = _start(python, site, repository, backends, work / f"server{attempt}.log")
            stack.callback(_kill, server.process)
            if _ready(server, ready_s):
                break
            _kill(server.process)
            said = server.log.read_text()
            if "in use" not in said or attempt == STARTS - 1:  # of a port
                raise RuntimeError(f"tritonserver did not come up:\n{reasons(said)}\nIts whole log: {server.log}")
        yield server


def _start(python: Path, site: Path, repository: Path, backends: Path, log: Path) -> Server:
    http, grpc = free_ports(2)
    command = [
        site / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        f"--model-repository={repository.resolve()}",
        f"--backend-directory={backends.resolve()}",
        "--disable-auto-complete-config",
        "--allow-gpu-metrics=false",
        "--allow-metrics=false",
        "--http-address=127.0.0.1",
        f"--http-port={http}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc}",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(c) for c in command], stdout=out, stderr=out, env=_variables(python, site), start_new_session=True
        )
    return Server(http, grpc, process, log)


def _variables(python: Path, site: Path) -> dict[str, str]:
    """The stub must load this interpreter's libpython, and find the environment's packages: it reads no PYTHONPATH, and
    takes those that belong to the first `python3` on PATH."""
    library = sysconfig.get_config_var("LIBDIR")
    paths = [library, str(site / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH", "")]
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    first = f"{python.parent}:{os.environ.get('PATH', '')}"
    return kept | {"LD_LIBRARY_PATH": ":".join(p for p in paths if p), "PATH": first}


def _backends(site: Path, work: Path) -> Path:
    """The wheel's Python backend with the stub of this Python version beside it."""
    own, folder = site / "pytriton" / "tritonserver", work / "backends"
    if not folder.exists():
        shutil.copytree(own / "backends" / "python", folder / "python")
        name = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = "triton_python_backend_stub"
        shutil.copy2(own / "python_backend_stubs" / name / stub, folder / "python" / stub)
    return folder


def _ready(server: Server, limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end and server.process.poll() is None:
        try:
            server.get("/v2/health/ready")
            return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    return False


def reasons(log: str, most: int = 5) -> str:
    """The lines of a server's log that tell of an error, without its tables; its end where none does."""
    lines = [line for line in log.splitlines() if line.strip() and line[0] not in "|+"]
    told = [line for line in lines if "ERROR" in line or "failed" in line or "error:" in line]
    return "\n".join(line[:1000] for line in (told or lines)[-most:])


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the server, asked first, then forced; its stubs, which share its process group, go with it."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
    with suppress(ProcessLookupError):  # nothing is left of the group
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(15)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _said(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
