"""Drawing images and extracting features split over processes by Accelerate. No number depends on how many there are:
batches are dealt out whole, every process computes with as many threads as a single one would, noise is a seed's own.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize import errors
from optimize.errors import OptimizeError
from optimize.quality.metrics import FeatureNetwork
from optimize.storage.disk import explained, save_tensors, writing
from optimize.storage.weights import read_tensors

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

WORKER = "optimize.quality.worker"
TAIL = 12  # lines of a broken worker's stderr that are shown


def images(
    folder: Path,
    runner: str,
    options: dict[str, Any],
    sampler: dict[str, Any],
    count: int,
    batch: int,
    processes: int,
) -> Tensor:
    """Images (N,C,H,W) in [-1, 1] of seeds 0..count-1, drawn from an artifact folder by a runner in several processes.

    Where there are GPUs every process sees one of them, in turn.
    """
    about = {"folder": str(folder), "runner": runner, "options": options, "sampler": sampler, "count": count}
    return _launch({"do": "images", **about, "batch": batch, "device": "cpu"}, None, processes)


def features(
    network: FeatureNetwork, pixels: Tensor, batch: int, name: str, processes: int, device: str = "cpu"
) -> np.ndarray:
    """(N,D) float64 features of images (N,C,H,W) in [-1, 1], extracted in several processes."""
    about = {"network": network.to_json(), "name": name, "count": len(pixels), "batch": batch, "device": device}
    return _launch({"do": "features", **about}, pixels, processes).numpy()


def parts(count: int, batch: int) -> list[tuple[int, int]]:
    """(start, stop) of the batches that a single process would take; the unit of sharing out."""
    return [(start, min(start + batch, count)) for start in range(0, count, batch)]


def _launch(job: dict[str, Any], pixels: Tensor | None, processes: int) -> Tensor:
    """Run a job in worker processes and return what they gathered; their errors are raised here."""
    import torch

    with tempfile.TemporaryDirectory(prefix="optimize-") as scratch:
        file, threads = Path(scratch) / "job.json", torch.get_num_threads()
        with writing(Path(scratch)):
            if pixels is not None:
                save_tensors({"images": pixels.contiguous()}, Path(scratch) / "images.safetensors")
            file.write_text(json.dumps(job | {"threads": threads}))
        workers = min(processes, len(parts(job["count"], job["batch"])))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        _raise(Path(scratch), _run([*command, "-m", WORKER, str(file)], environment))
        return read_tensors(Path(scratch) / "made.safetensors")["made"]


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A command in a session of its own, so that Ctrl-C reaches this process alone, which then ends all of them."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            out, errors = process.communicate()
        except BaseException:
            end_tree(process.pid)
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, errors)


def end_tree(pid: int) -> None:
    """End a process and all that it started; it is halted first, so that it starts no more meanwhile."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        top.suspend()
        for process in [*top.children(recursive=True), top]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _raise(scratch: Path, ended: subprocess.CompletedProcess[str]) -> None:
    """The error of a worker, as it would have been raised in one process."""
    for file in sorted(scratch.glob("error-*.json")):
        said = json.loads(file.read_text())
        kind = getattr(errors, said["kind"], OptimizeError)
        raise kind(said["message"])
    if os.strerror(errno.ENOSPC) in ended.stderr:
        raise explained(scratch, errno.ENOSPC, OSError())
    if ended.returncode:
        lines = "\n".join(ended.stderr.splitlines()[-TAIL:])
        raise OptimizeError(
            f"quality.processes: a worker ended with code {ended.returncode}. With processes: 1 the error is easier to see. It said:\n{lines}"
        )
