"""An artifact served by a real Triton server: are the images the library's, how many requests a second, how late?

Writes the model repository, starts the tritonserver of the wheel nvidia-pytriton in an environment of its own (made on
first use), and asks for 500 images with 1, 4 and 16 clients by gRPC and HTTP, one image a request. Every image is
compared with the one the library draws for that seed alone with the ONNX Runtime runner. Executions are the server's own
count, the warm-up's (three requests a client) among them: fewer than images where requests were batched. Clients and server share the machine's cores.

    python benchmarks/serving.py exported/digits [--clients 1,4,16] [--requests 500] [--out benchmarks/records/serving.json]
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from recorded import put
from triton_server import CACHE, SERVER, Server, environment, served

from optimize.hardware.environment import environment as machine
from optimize.measure.statistics import percentiles
from optimize.serving._drawing import find_artifact
from optimize.storage.trust import MANIFEST
from optimize.storage.weights import read_json

CLIENT = Path(__file__).with_name("triton_client.py")
TOLERANCE = 1e-5  # of images in [-1, 1]: float32 rounding of the network at another batch size


def main() -> int:
    """Measure, print, write the record; 0 where no image is wrong."""
    asked = _arguments()
    record: dict[str, Any] = {"date": datetime.date.today().isoformat(), "environment": machine()}
    record["command"] = shlex.join(["python", "benchmarks/serving.py", *sys.argv[1:]])
    identity = read_json(find_artifact(asked.artifact) / MANIFEST).get("id", "")
    record |= {"artifact": str(asked.artifact), "id": identity, "tolerance": TOLERANCE, "server": list(SERVER)}
    record["settings"] = {
        "max_batch": asked.max_batch,
        "queue_delay_us": asked.queue_delay_us,
        "threads": asked.threads,
    }
    with tempfile.TemporaryDirectory() as work:
        record["rows"] = measure(asked, Path(work))
    _show(record)
    if asked.out:
        put(asked.out, record)
    return 1 if any(row["wrong"] for row in record["rows"]) else 0


def measure(asked: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """A row for every protocol and number of clients."""
    from optimize.serving.triton import make_repository

    policy = {"max_batch": asked.max_batch, "queue_delay_us": asked.queue_delay_us, "threads": asked.threads}
    make_repository(asked.artifact, work / "models", model="served", models=("sampling",), **policy)
    expected = library_images(asked.artifact, asked.requests)
    rows, python = [], environment(asked.cache)
    with served(python, work / "models", work) as server:
        for protocol in asked.protocols:
            for clients in asked.clients:
                before = server.counts("served")
                found = load(python, server, protocol, work / "found.npz", requests=asked.requests, clients=clients)
                after = server.counts("served")
                warm = clients * 3
                row = {"protocol": protocol, "clients": clients, "requests": asked.requests}
                counts = {"images": after[0] - before[0] - warm, "executions": after[1] - before[1], "warm_up": warm}
                rows.append(row | counts | judged(found, expected))
    return rows


def library_images(artifact: Path, count: int, batch: int = 1) -> np.ndarray:
    """Images (N,C,H,W) of seeds 0..N-1 as the library draws them, `batch` at a time."""
    from optimize.architectures.artifact import load_model
    from optimize.diffusion.backend import open_runner

    folder = find_artifact(artifact)
    with open_runner(folder, "onnxruntime") as runner:
        return load_model(folder).with_network(runner).sample(range(count), batch).numpy()


def load(python: Path, server: Server, protocol: str, out: Path, **options: Any) -> dict[str, Any]:
    """What the clients saw: `seeds`, `images`, `seconds` of each, `wall` seconds of all, `errors` {seed: text}."""
    port = server.grpc if protocol == "grpc" else server.http
    given = {"url": f"127.0.0.1:{port}", "protocol": protocol, "model": "served", "out": out} | options
    flags = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    subprocess.run([python, CLIENT, *flags], check=True, timeout=600)
    with np.load(out) as found:
        values = {name: found[name] for name in found.files}
    return values | {"wall": float(values["wall"]), "errors": json.loads(str(values["errors"]))}


def judged(found: dict[str, Any], expected: np.ndarray) -> dict[str, Any]:
    """Requests a second, latency percentiles in milliseconds, and how the images compare with the library's."""
    errors, images = found["errors"], found["images"]
    apart = np.array([np.abs(image - expected[seed]).max() for seed, image in zip(found["seeds"], images)] or [np.inf])
    ms = found["seconds"] * 1e3
    return {
        "per_second": len(images) / found["wall"],
        "latency_ms": percentiles(ms, (50, 99)) if len(ms) else {},
        "identical": int((apart == 0).sum()),
        "largest_difference": float(apart.max()),
        "wrong": int((~(apart <= TOLERANCE)).sum()) + len(errors) if len(images) else len(expected),
        "errors": sorted(set(errors.values()))[:5],
    }


def _show(record: dict[str, Any]) -> None:
    print(f"{record['artifact']} on {record['environment']['cpu']}, {record['environment']['cores']} cores")
    names = (
        "protocol",
        "clients",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "images",
        "executions",
        "identical",
        "apart",
        "wrong",
    )
    print("".join(f"{name:>12}" for name in names))
    for row in record["rows"]:
        latency = row["latency_ms"]
        print(
            f"{row['protocol']:>12}{row['clients']:>12}{row['per_second']:>12.1f}{latency['p50']:>12.2f}{latency['p99']:>12.2f}"
            f"{row['images']:>12}{row['executions']:>12}{row['identical']:>12}{row['largest_difference']:>12.1e}{row['wrong']:>12}"
        )
        for error in row["errors"]:
            print(f"    {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="an artifact with onnx/model.onnx, or a run's folder")
    parser.add_argument("--clients", type=_numbers, default=(1, 4, 16))
    parser.add_argument("--protocols", type=lambda text: text.split(","), default=("grpc", "http"))
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--queue-delay-us", type=int, default=2000)
    parser.add_argument("--threads", type=int, help="of ONNX Runtime in the server; all cores by default")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the server's environment is kept")
    parser.add_argument("--out", type=Path, help="JSON file that the record is added to")
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
