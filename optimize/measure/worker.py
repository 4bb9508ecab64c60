"""One variant in a process of its own: `python -m optimize.measure.worker`, a JSON object a line on stdin and stdout.

Requests: open (a variant), warm, turn, close; each is answered by one line. Whatever libraries write to stdout goes to
stderr. An error is answered by `{"error": reason, "refused": whether this machine lacks what it takes}` and ends the
process with exit code 1; so does the end of stdin.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from optimize.diffusion.backend import open_runner, reads_weights
from optimize.errors import EnvironmentLacks, OptimizeError
from optimize.hardware import environment
from optimize.measure import energy, memory, timing
from optimize.measure.record import KINDS, Variant
from optimize.onnx.check import vouch
from optimize.registry import RUNNERS

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.diffusion.model import Model


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until `close` or the end of `requests`."""
    with ExitStack() as opened:
        subject: Subject | None = None
        answer: dict[str, Any]
        for request in map(json.loads, requests):
            if request["do"] == "open":
                vouch(request.get("checked", []))
                subject = opened.enter_context(Subject(Variant(**request["variant"])))
                answer = subject.opened
            elif subject is None:
                raise OptimizeError(f"worker: {request['do']} asked before open")
            elif request["do"] == "warm":
                answer = subject.warm(request["limit_s"])
            elif request["do"] == "turn":
                answer = subject.turn(request["calls"], request["limit_s"], request.get("kinds", KINDS))
            else:
                send(replies, {"memory": subject.memory(), "energy": subject.energy})
                return
            send(replies, answer)


def send(replies: TextIO, answer: dict[str, Any]) -> None:
    """One JSON line."""
    replies.write(json.dumps(answer) + "\n")
    replies.flush()


class Subject:
    """The opened variant; a context manager that closes its runner."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self._stack = ExitStack()

    def __enter__(self) -> Subject:
        cold, resident = self._load()
        about = self.network.describe()
        device = str(about.get("device", "cpu"))
        self.wait, clock = timing.synchronizer(device)
        gpu = _gpu(device)
        self._meter, self.energy = _meter(gpu)
        self.opened = {
            "runner": {**about, "torch_threads": _torch_threads(), "clock": clock},
            "gpu": gpu,
            "nfe": self.sampler.nfe(self.model.denoiser.schedule),
            "memory": {"imported_bytes": resident, "loaded_bytes": memory.resident_bytes(), **self._file},
            "artifact_id": self._artifact_id,
            "cold": cold,
        }
        return self

    def _load(self) -> tuple[dict[str, float], int]:
        """Seconds of importing and loading, and the resident bytes between the two."""
        start, options = perf_counter(), runner_options(self.variant)
        import torch

        from optimize.architectures.artifact import model_around

        imported, resident, folder = perf_counter(), memory.resident_bytes(), Path(self.variant.folder)
        self._stack.enter_context(torch.inference_mode())
        runner = open_runner(folder, self.variant.runner, **options)
        self.network = self._stack.enter_context(runner)
        self.model = model_around(folder, self.network)
        self.sampler = self.variant.sampler or self.model.sampler
        about = self.network.describe()
        self._artifact_id, self._file = _on_disk(folder, self.variant.runner, about)
        self.device = str(about["device"]) if self.variant.io == "device" else "cpu"
        self.feed = {k: v.to(self.device) for k, v in middle_inputs(self.model, self.variant.batch).items()}
        return {"import_s": imported - start, "load_s": perf_counter() - imported}, resident

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def call(self) -> Tensor:
        """One network call at the variant's batch."""
        return self.network(**self.feed)

    def images(self) -> Tensor:
        """One batch of images from fixed seeds, noise drawn and clamped as a user gets them."""
        batch = self.variant.batch
        return self.model.sample(range(batch), batch=batch, sampler=self.sampler, device=self.device)

    def first_images(self) -> None:
        """Images once, refused where they are not finite: what computes nonsense is not timed."""
        if not self.images().isfinite().all():
            raise OptimizeError(
                f"{self.variant.key}: the images of runner {self.variant.runner} hold NaN or infinities"
            )

    def warm(self, limit_s: float) -> dict[str, Any]:
        """First call and images, then more until stable or `limit_s` each; then the memory peak starts again."""
        cold = {
            "first_call_s": timing.timed(self.call, self.wait),
            "first_image_s": timing.timed(self.first_images, self.wait),
        }
        warm_up = {
            "call": timing.warm_up(self.call, self.wait, limit_s),
            "image": timing.warm_up(self.images, self.wait, limit_s - cold["first_image_s"]),
        }
        self.peak = memory.peak_bytes()
        memory.reset_peak()
        gc.collect()
        gc.freeze()  # else the collection before every turn looks at all of torch again, longer than many turns take
        return {"cold": cold, "warm_up": warm_up}

    def turn(self, calls: int, limit_s: float, kinds: Sequence[str] = KINDS) -> dict[str, list[float]]:
        """Seconds of up to `calls` network calls and as many batches of images, each kind within `limit_s`."""
        self.call()  # takes the caches back from whoever had the turn before
        taken = {}
        if "call" in kinds:
            taken["call_s"] = timing.samples(self.call, self.wait, calls, limit_s)
        if "image" in kinds:
            taken["image_s"] = self._metered(calls, limit_s)
        return taken

    def _metered(self, calls: int, limit_s: float) -> list[float]:
        """Seconds of batches of images; their energy is added up where something counts it."""
        if self._meter is None:
            return timing.samples(self.images, self.wait, calls, limit_s)
        self._meter.start()
        taken = timing.samples(self.images, self.wait, calls, limit_s)
        self.energy["joules"] += self._meter.stop()
        self.energy["images"] += len(taken) * self.variant.batch
        return taken

    def memory(self) -> dict[str, int]:
        """`peak_bytes` of the whole life, `serving_peak_bytes` since warm-up; on CUDA what torch's allocator gave out
        at most (`device_allocated_peak_bytes`) and held (`device_peak_bytes`)."""
        serving = memory.peak_bytes()
        found = {"peak_bytes": max(getattr(self, "peak", 0), serving), "serving_peak_bytes": serving}
        return found | dict(_device_memory())


def _device_memory() -> Iterator[tuple[str, int]]:
    import torch

    if torch.cuda.is_initialized():
        yield "device_allocated_peak_bytes", torch.cuda.max_memory_allocated()
        yield "device_peak_bytes", torch.cuda.max_memory_reserved()


def _on_disk(folder: Path, runner: str, about: dict[str, Any]) -> tuple[str, dict[str, int]]:
    """The artifact's id, and `file_bytes` of what this runner loads: the weights for torch, the engine it says it took,
    else the exported files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    sizes = {name: f["bytes"] for name, f in manifest["files"].items()}
    exported = sum(n for name, n in sizes.items() if name.startswith("onnx/"))
    weights = sizes.get("model.safetensors", 0)
    loaded = weights if reads_weights(runner) else about.get("engine", {}).get("plan_bytes") or exported or weights
    return manifest.get("id", ""), {"file_bytes": loaded}


def _gpu(device: str) -> str | int | None:
    """The GPU's UUID as NVML has it (its index where torch does not tell), for a CUDA device."""
    if not device.startswith("cuda"):
        return None
    import torch

    index = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available():
        return index
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def _meter(gpu: str | int | None) -> tuple[energy.Meter | None, dict[str, Any]]:
    """What counts energy here with an account at zero; or the reason why nothing does."""
    try:
        found = energy.meter(gpu)
    except EnvironmentLacks as error:
        return None, {"reason": str(error)}
    return found, {"joules": 0.0, "images": 0, "by": found.by}


def runner_options(variant: Variant) -> dict[str, Any]:
    """The variant's options, with its thread count and I/O policy where the runner takes them.

    Raises EnvironmentLacks for a policy that the runner does not have.
    """
    takes = getattr(RUNNERS.get(variant.runner), "model_fields", {})
    threads = {"threads": variant.threads or environment.cores()} if "threads" in takes else {}
    return threads | _policy(variant, takes) | variant.options


def _policy(variant: Variant, takes: Any) -> dict[str, Any]:
    asked = {"io": (variant.io, "host"), "cuda_graphs": (variant.cuda_graphs, False)}
    for name, (value, usual) in asked.items():
        if value != usual and name not in takes:
            words = {"io": "io device", "cuda_graphs": "CUDA graphs"}[name]
            raise EnvironmentLacks(
                f"runner {variant.runner}: {words}: it computes in the host's memory, so only io host without CUDA graphs exists."
            )
    return {name: value for name, (value, _) in asked.items() if name in takes}


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def middle_inputs(model: Model, batch: int) -> dict[str, Tensor]:
    """Seeded network inputs in the middle of the noise range."""
    from optimize.diffusion.parity import noise_levels, noised_inputs

    return noised_inputs(model, noise_levels(model, 3)[1], batch, seed=0)


def _answer_errors(replies: TextIO) -> None:
    """Every uncaught exception is answered as one line, its traceback left on stderr."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        text = str(error) if issubclass(kind, OptimizeError) else f"{kind.__name__}: {error}"
        send(replies, {"error": text, "refused": issubclass(kind, EnvironmentLacks)})

    sys.excepthook = hook


def main() -> None:
    """Serve the process that started this one."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print cannot disturb the replies
    _answer_errors(replies)
    send(replies, {"ready": os.getpid()})
    serve(sys.stdin, replies)
    os._exit(0)  # the runner is closed; taking torch's modules apart one by one would only keep a core busy


if __name__ == "__main__":
    main()
