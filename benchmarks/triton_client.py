"""Clients of a Triton server: threads that each ask for one image after another, by HTTP or gRPC.

Runs in the server's environment (numpy and tritonclient, nothing of this library). Seeds are taken in order by whoever
is free. Leaves images and seconds of every request in an .npz file, and its errors.

    python benchmarks/triton_client.py --url 127.0.0.1:8001 --protocol grpc --model digits --requests 500 --clients 4 --out found.npz
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np


def main() -> None:
    """Ask, and write what came back."""
    asked = _arguments()
    client = importlib.import_module(f"tritonclient.{asked.protocol}")
    Load(client, asked).run()


class Load:
    """The requests of one load, shared by its clients."""

    def __init__(self, client: Any, asked: argparse.Namespace) -> None:
        self.client, self.asked = client, asked
        self.take = itertools.count(asked.first)
        self.images: dict[int, np.ndarray] = {}
        self.seconds: dict[int, float] = {}
        self.errors: dict[int, str] = {}

    def run(self) -> None:
        """Start all clients, each connected and warmed up; then write the file."""
        start = threading.Barrier(self.asked.clients + 1)
        threads = [threading.Thread(target=self._ask, args=(start,)) for _ in range(self.asked.clients)]
        for thread in threads:
            thread.start()
        start.wait()
        begin = perf_counter()
        for thread in threads:
            thread.join()
        wall = perf_counter() - begin
        seeds = sorted(self.images)
        np.savez(
            self.asked.out,
            seeds=np.array(seeds, np.int64),
            images=np.stack([self.images[s] for s in seeds]) if seeds else np.empty(0),
            seconds=np.array([self.seconds[s] for s in seeds]),
            wall=wall,
            errors=json.dumps(self.errors),
        )

    def _ask(self, start: threading.Barrier) -> None:
        server = self.client.InferenceServerClient(self.asked.url)
        for _ in range(self.asked.warm_up):
            self._one(server, 0)
        start.wait()
        while (seed := next(self.take)) < self.asked.first + self.asked.requests:
            begin = perf_counter()
            try:
                self.images[seed] = self._one(server, seed)
            except Exception as error:  # noqa: BLE001 - whatever went wrong is a wrong answer, and is reported
                self.errors[seed] = str(error)
            self.seconds[seed] = perf_counter() - begin

    def _one(self, server: Any, seed: int) -> np.ndarray:
        given = {"seed": (np.array([[seed]], np.int64), "INT64")}
        if self.asked.label is not None:
            given["label"] = (np.array([[self.asked.label]], np.int64), "INT64")
        if self.asked.guidance is not None:
            given["guidance"] = (np.array([[self.asked.guidance]], np.float64), "FP64")
        inputs = []
        for name, (value, kind) in given.items():
            inputs.append(self.client.InferInput(name, value.shape, kind))
            inputs[-1].set_data_from_numpy(value)
        wanted = [self.client.InferRequestedOutput(self.asked.output)]
        return server.infer(self.asked.model, inputs, outputs=wanted).as_numpy(self.asked.output)[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--protocol", choices=("http", "grpc"), default="grpc")
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="seed of the first request")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--warm-up", type=int, default=3, help="requests of every client before the clock starts")
    parser.add_argument("--label", type=int, help="class of every image")
    parser.add_argument("--guidance", type=float, help="guidance weight of every image")
    parser.add_argument("--output", choices=("images", "pixels"), default="images")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
