"""One of the processes of `shards`: `python -m torch.distributed.run --nproc-per-node N -m optimize.quality.worker JOB.json`.

Takes its batches of the job, gathers the results with the others, and the first process writes them. Tensors alone travel
between processes. An OptimizeError is written beside the job as `error-<rank>.json`, and the process ends with code 1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import OptimizeError
from optimize.quality.metrics import FeatureNetwork
from optimize.quality.shards import parts
from optimize.storage.disk import save_tensors

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

Compute = Callable[[int, int], "Tensor"]  # (start, stop) -> results of these images


def work(file: Path) -> None:
    """This process's share of a job."""
    import torch
    from accelerate import PartialState

    job = json.loads(file.read_text())
    if job["do"] == "images":
        own_gpu(int(os.environ.get("LOCAL_RANK", 0)))
    torch.set_num_threads(job["threads"])
    state = PartialState(cpu=job["device"] == "cpu")
    try:
        made = shared(job, state, file.parent)
        if state.is_main_process:
            save_tensors({"made": made.contiguous()}, file.with_name("made.safetensors"))
        state.wait_for_everyone()
    except OptimizeError as error:
        said = {"kind": type(error).__name__, "message": str(error)}
        (file.parent / f"error-{state.process_index}.json").write_text(json.dumps(said))
        sys.exit(1)
    finally:
        state.destroy_process_group()


def own_gpu(rank: int) -> None:
    """Let this process see one GPU, before anything opens one: a runner takes the first it sees. None stays none."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = named.split(",") if named is not None else [str(i) for i in range(torch.cuda.device_count())]
    if len(seen) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[rank % len(seen)]


def shared(job: dict[str, Any], state: PartialState, folder: Path) -> Tensor:
    """The whole result, on every process."""
    opened = _images if job["do"] == "images" else _features
    with opened(job, state, folder) as compute:
        return gathered(compute, parts(job["count"], job["batch"]), state)


def gathered(compute: Compute, batches: list[tuple[int, int]], state: PartialState) -> Tensor:
    """Results of all batches in order: each process computes its own, padded to the largest share, and all are joined."""
    import torch
    from accelerate.utils import gather, pad_across_processes

    with state.split_between_processes(batches) as mine:
        own = torch.cat([compute(start, stop) for start, stop in mine])
    sizes = gather(torch.tensor([len(own)], device=state.device)).tolist()
    padded = pad_across_processes(own.to(state.device)).contiguous()
    pieces = gather(padded).cpu().split(max(sizes))
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes)])


@contextmanager
def _images(job: dict[str, Any], state: PartialState, folder: Path) -> Iterator[Compute]:
    """Draws the images of seeds start..stop-1; watched by the torch network where another runner draws."""
    from optimize.architectures.artifact import load_model, model_around
    from optimize.architectures.finite import Watched
    from optimize.diffusion.backend import open_runner
    from optimize.diffusion.sampling import Sampler

    artifact, sampler = Path(job["folder"]), Sampler(**job["sampler"])
    witness = None if job["runner"] == "torch" else load_model(artifact).denoiser.network
    with open_runner(artifact, job["runner"], **job["options"]) as network:
        model = model_around(artifact, Watched(network, witness, f"quality: {artifact.name[:10]} on {job['runner']}"))
        yield lambda start, stop: model.sample(range(start, stop), stop - start, sampler)


@contextmanager
def _features(job: dict[str, Any], state: PartialState, folder: Path) -> Iterator[Compute]:
    """Extracts the features of the images that lie beside the job."""
    import torch

    from optimize.quality import features
    from optimize.storage.weights import read_tensors

    name, device = job["name"], str(state.device)
    network = features.open_network(FeatureNetwork.model_validate(job["network"]), device)
    pixels = read_tensors(folder / "images.safetensors")["images"]

    def compute(start: int, stop: int) -> Tensor:
        part = pixels[start:stop]
        return torch.from_numpy(features.extract(network, part, len(part), name, device))

    yield compute


if __name__ == "__main__":
    work(Path(sys.argv[1]))
