"""An artifact opened for drawing: checked, on the fastest runner that is installed, one batch at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

from optimize.architectures.artifact import model_around, verify_network
from optimize.diffusion.backend import open_runner, spec_parts
from optimize.errors import ArtifactError, EnvironmentLacks, OptimizeError, UserError
from optimize.hardware.environment import device_class
from optimize.registry import RUNNERS
from optimize.storage.trust import MANIFEST
from optimize.storage.weights import read_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from optimize.diffusion.network import Network

LOOK_S = 0.2  # a request that waits looks this often whether its asker is still there
ON_CPU = ("openvino", "onnxruntime", "torch")  # in the order of their usual speed
ON_GPU = ("onnxruntime@cuda", "torch@cuda")


def find_artifact(path: Path) -> Path:
    """The artifact at `path`, or the final one of the run at `path`; ArtifactError where there is neither."""
    for folder in (path, path / "final"):
        if (folder / MANIFEST).is_file():
            return folder
    reason = "is neither an artifact nor a run with a final one" if path.is_dir() else "is no folder"
    raise ArtifactError(f"serve: {path} {reason}. Give an artifact or a run's folder, e.g. exported/digits.")


def candidates(folder: Path) -> Iterator[tuple[str, str]]:
    """(runner, why) to try, best first: as measured for this artifact on this kind of device, then by usual speed."""
    taken = []
    for latency, spec in sorted(_measured(folder)):
        taken.append(spec)
        yield spec, f"{latency:.3g} ms an image in the run's own measurement"
    usual = ON_CPU if device_class() == "cpu" else (*ON_GPU, *ON_CPU)
    for spec in usual:
        if spec not in taken:
            yield spec, "first of the installed runners"


def _measured(folder: Path) -> list[tuple[float, str]]:
    """(milliseconds an image, runner) of this artifact's rows in the summary beside it; empty where there is none."""
    if not (folder.parent / "summary.json").is_file():
        return []
    summary, identity = read_json(folder.parent / "summary.json"), read_json(folder / MANIFEST).get("id")
    if (summary.get("environment") or {}).get("device") != device_class():
        return []
    found: dict[str, float] = {}
    for row in summary["rows"]:
        fits = row.get("artifact_id") == identity and row.get("status") == "done" and not row.get("predicted")
        spec, latency = row.get("runner") or "", (row.get("image_latency_ms") or {}).get("p50")
        if fits and latency is not None and spec_parts(spec)[0] in RUNNERS.names():
            found[spec] = min(latency, found.get(spec, float("inf")))
    return [(latency, spec) for spec, latency in found.items()]


class Abandoned(Exception):
    """Nobody waits for the images any more, or the server is being stopped."""


class Heeding:
    """A network that asks before each call whether there is still a reason for it; `check` raises where there is none."""

    def __init__(self, network: Network, check: Callable[[], None]) -> None:
        self.network, self.check, self.inputs = network, check, network.inputs

    def __call__(self, **tensors: Tensor) -> Tensor:
        """The network's output."""
        self.check()
        return self.network(**tensors)


@dataclass(frozen=True)
class Drawn:
    """Samples (N,C,H,W), (N,C,L) or (N,L,C) float32, images in [-1, 1], the label of each (None for a model without
    classes), seconds taken; `first` of its batch size, where runners set themselves up within these seconds."""

    images: np.ndarray
    labels: list[int] | None
    seconds: float
    first: bool


class Drawing:
    """A `with` block in which seeds become images; raises EnvironmentLacks where no runner works.

    Every file is compared with the manifest before any is loaded.
    """

    def __init__(self, path: Path, runner: str | None = None) -> None:
        self.folder = find_artifact(path)
        self.manifest = verify_network(self.folder)
        self.sampling = read_json(self.folder / "sampler.json")
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._stopped = threading.Event()
        self._seen: set[int] = set()  # batch sizes drawn
        given = [(runner, "as asked")] if runner else list(candidates(self.folder))
        self.runner, self.why, network = self._open(given)
        self.model = model_around(self.folder, network)

    def _open(self, given: Sequence[tuple[str, str]]) -> tuple[str, str, Any]:
        reasons: list[OptimizeError] = []
        for spec, why in given:
            name, options = spec_parts(spec)
            try:
                return spec, why, self._stack.enter_context(open_runner(self.folder, name, **options))
            except (EnvironmentLacks, ArtifactError) as error:
                reasons.append(error)
        if len(reasons) == 1:
            raise reasons[0]
        raise EnvironmentLacks(f"serve: no runner opens {self.folder}: {' '.join(str(r) for r in reasons)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: Any) -> None:
        self._stack.close()

    def stop(self) -> None:
        """No network is called any more; drawings under way raise Abandoned."""
        self._stopped.set()

    def draw(self, seeds: Sequence[int], label: int | None = None, gone: Callable[[], bool] = lambda: False) -> Drawn:
        """Images of the seeds, all of class `label` or each of its own; UserError for a class there is not.

        `gone` tells whether who asked is gone: asked before each call of the network and while others draw, it ends the
        drawing with Abandoned."""
        import torch

        from optimize.diffusion.sampling import sample

        about = self.model.denoiser.conditioning
        if label is not None and about.kind != "class":
            raise UserError("class: this model is not class-conditional; leave it out")
        if label is not None and label not in map(about.label, range(about.classes)):
            raise UserError(f"class: {label} given, allowed {about.labels}")
        told = self.model.condition(seeds) if label is None else torch.full((len(seeds),), label)

        def check() -> None:
            if self._stopped.is_set() or gone():
                raise Abandoned

        with self._turn(check), torch.inference_mode():
            heeding = self.model.denoiser.with_network(Heeding(self.model.denoiser.network, check))
            noise, start = self.model.noise(seeds), perf_counter()
            drawn, limit = sample(self.model.sampler, heeding, noise, told), self.model.limit
            drawn = (drawn if limit is None else drawn.clamp(-limit, limit)).float()
            seconds = perf_counter() - start
            first = len(seeds) not in self._seen
            self._seen.add(len(seeds))
        return Drawn(drawn.numpy(), told.tolist() if about.kind == "class" else None, seconds, first)

    @contextmanager
    def _turn(self, check: Callable[[], None]) -> Iterator[None]:
        """The block is entered by one at a time; while waiting, `check` may raise."""
        check()
        while not self._lock.acquire(timeout=LOOK_S):
            check()
        try:
            yield
        finally:
            self._lock.release()

    def without_place(self, text: str) -> str:
        """A text without the paths of the artifact's folder."""
        for place in sorted(
            {str(self.folder), str(self.folder.absolute()), str(self.folder.resolve())}, key=len, reverse=True
        ):
            text = text.replace(place, "the artifact") if len(place) > 1 else text
        return text

    def describe(self) -> dict[str, Any]:
        """What is served, JSON; not where it lies."""
        sampler, conditioning = self.model.sampler, self.model.denoiser.conditioning
        return {
            "name": self.folder.parent.name if self.folder.name == "final" else self.folder.name,
            "id": self.manifest.get("id", ""),
            "runner": self.runner,
            "why": self.why,
            "shape": list(self.model.shape),
            "latents": self.model.limit is None,
            "classes": conditioning.classes if conditioning.kind == "class" else 0,
            "solver": sampler.solver,
            "steps": sampler.steps,
            "nfe": self.model.nfe,
            "guidance": sampler.guidance.to_json(),
        }
