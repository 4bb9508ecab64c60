"""One training loop for every pass that learns; a step is a pure function of the weights, the seed and its number.

No generator or loader has a state, so a checkpoint is weights, Adam's moments, the moving average and a step number,
and a killed run that is resumed ends with the same bits as one that never stopped. The clock decides only *when* a
checkpoint is written. Accelerate gives data parallelism; precision is torch.autocast around the whole loss, which
covers the teacher too and leaves the module's `forward` as it is.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from optimize import rng
from optimize.configs import MOST, Config, Count, digest
from optimize.diffusion.context import Data
from optimize.diffusion.denoiser import moved
from optimize.errors import ArtifactError, EnvironmentLacks, OptimizeError, UserError
from optimize.hardware.environment import instructions
from optimize.progress import Progress, silent
from optimize.storage.commit import commit, write_json
from optimize.storage.disk import save_tensors
from optimize.storage.swap import discard, sweep
from optimize.storage.trust import verify
from optimize.storage.weights import read_json, read_tensors
from optimize.training import objectives
from optimize.training.whole_state import refuse_incomplete

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

log = logging.getLogger(__name__)
CURVE_POINTS = 20  # points of the loss curve kept in the record


class TrainingConfig(Config):
    """How to train; the fields every learning pass shares."""

    steps: Count = 300
    """Optimizer steps."""
    batch: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Samples of a step, over all processes together."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """AdamW's peak rate, reached after the warm-up."""
    warmup: Annotated[int, Field(ge=0, le=MOST)] = 20
    """Steps of linear warm-up, then a cosine to 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_norm: Annotated[float, Field(gt=0)] = 1.0
    """The gradient's norm is clipped to this."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the averaged weights that are kept; 0 is off."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the network; auto is bf16 where it is fast."""
    checkpoint_s: Annotated[float, Field(ge=0)] = 30.0
    """Seconds between checkpoints; 0 writes one every step."""


@dataclass(frozen=True)
class Share:
    """What one process does of a global batch: part `rank` of `world` equal ones, on `device`."""

    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    def of(self, batch: int) -> slice:
        """The slice of a global batch that is this process's; the mean over shares is the mean over the batch."""
        if batch % self.world:
            raise UserError(f"batch: {batch} given, allowed are multiples of the {self.world} processes")
        size = batch // self.world
        return slice(self.rank * size, (self.rank + 1) * size)


Loss = Callable[["nn.Module", int, Share], "Tensor"]


def train(
    module: nn.Module,
    loss: Loss,
    config: TrainingConfig,
    *,
    seed: int,
    name: str,
    identity: Any = None,
    checkpoints: Path | None = None,
    progress: Progress = silent,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train `module` in place and return the record: steps, and the loss at the start, at the end and between.

    `loss(module, step, share)` returns the mean loss (scalar) of this process's share of batch `step`; it must depend
    on nothing but the weights, `step` and `share` (draw from `optimize.rng` with a key that holds the seed). It gets
    the module to call, which may be wrapped for data parallelism. Modules stay in evaluation mode: dropout would need
    a generator's state, and a short fit to a deterministic teacher is better without it.

    With `checkpoints`, state goes to that folder every `config.checkpoint_s` seconds and a run with the same config,
    seed, `name`, starting weights and `identity` (JSON: whatever else shapes the loss) goes on from the newest whole
    checkpoint; others are passed over with a warning. The folder is the caller's to remove.

    Raises OptimizeError naming the step where the loss is not finite; UserError for a batch that cannot be shared;
    EnvironmentLacks where the device is missing or a checkpoint cannot be written.
    """
    config = config.model_copy(update={"precision": resolve_precision(config.precision, device)})
    about = {"config": config.model_dump(mode="json", exclude={"checkpoint_s"}), "seed": seed, "name": name}
    key = digest({**about, "identity": identity, "start": _weights_sha256(module)}) if checkpoints else ""
    with _trainable(module), _accelerator(device) as (accelerator, share):
        run = _Run(module.to(share.device), config, accelerator)
        saver = _Saver(checkpoints, key, config.checkpoint_s, accelerator.is_main_process)
        saver.restore(run)
        with progress(name, config.steps) as advance:
            advance(run.step)
            while run.step < config.steps:
                value = run.advance(loss, share)
                saver.save_if_due(run)
                advance(1, f"loss {value:.4g}")
        saver.save(run)
        run.finish()
    return {**_record(run.losses), "precision": config.precision}


def resolve_precision(wanted: str, device: str) -> str:
    """`auto` as `bf16` or `fp32`; a CPU without bfloat16 instructions emulates them, some thirty times slower."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    return "bf16" if {"avx512_bf16", "amx_bf16"} & set(instructions()) else "fp32"


def kept(folder: Path | None, key: Any, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of `make()`, from `folder` where an earlier run with the same `key` (JSON) has left them whole."""
    if folder is None:
        return make()
    if folder.is_dir():
        try:
            if verify(folder)["id"] == digest(key):
                return read_tensors(folder / "state.safetensors")
            log.warning("%s is not used: it belongs to other settings", folder)
        except ArtifactError as error:
            log.warning("it is not used and made again: %s", error)
    tensors = make()

    def write(temporary: Path) -> dict[str, Any]:
        save_tensors(tensors, temporary / "state.safetensors")
        return {"id": digest(key)}

    commit(folder, write, ours=True)
    return tensors


@dataclass(frozen=True)
class Batch:
    """One process's share of a training batch; x and eps (B,C,H,W) float32, condition labels (B,) int64 or tensors by
    name, uniform (B,) in [0, 1)."""

    x: Tensor
    condition: Any
    eps: Tensor
    uniform: np.ndarray


def draw(data: Data, size: int, share: Share, *key: rng.Key) -> Batch:
    """Samples with replacement and their noise, functions of `key` (name, seed, step) alone. `uniform` is stratified
    over the global batch of `size`: it covers [0, 1) evenly, so that the noise levels of a batch do."""
    import torch

    part, count = share.of(size), len(data.images)
    index = torch.from_numpy(rng.integers(0, count, (size,), *key, "index")[part])
    eps = torch.from_numpy(rng.normal((size, *data.images.shape[1:]), *key, "eps")[part])
    uniform = objectives.stratified(rng.uniform((size,), *key, "uniform"))[part]
    condition = moved(data.condition(index), share.device)
    return Batch(data.images[index].to(share.device), condition, eps.to(share.device), uniform)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up to the peak, times a cosine that falls from 1 at step 0 to 0 after the last step."""
    rise = min(1.0, (step + 1) / (config.warmup + 1))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def ema_decay(config: TrainingConfig, step: int) -> float:
    """Decay used at `step`; it starts low so that the average forgets the starting weights."""
    return min(config.ema, (1 + step) / (10 + step))


@dataclass
class _Run:
    """Everything that changes from step to step."""

    module: nn.Module
    config: TrainingConfig
    accelerator: Any
    step: int = 0
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch

        self.parameters = {k: p for k, p in self.module.named_parameters() if p.requires_grad}
        adam = torch.optim.AdamW(self.parameters.values(), lr=0.0, weight_decay=self.config.weight_decay)
        places = [False, False]
        self.wrapped, self.optimizer = self.accelerator.prepare(self.module, adam, device_placement=places)
        self.ema = {k: p.detach().clone() for k, p in self.parameters.items()} if self.config.ema else {}

    def advance(self, loss: Loss, share: Share) -> float:
        """One optimizer step; returns its loss, the mean over all processes."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        device = torch.device(share.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bf16"):
            value = loss(self.wrapped, self.step, share)
        mean = float(self.accelerator.reduce(value.detach(), reduction="mean"))
        if not math.isfinite(mean):
            raise OptimizeError(
                f"training: the loss is {mean} at step {self.step} of {self.config.steps}. "
                f"Lower learning_rate ({self.config.learning_rate:g}), or use precision: fp32."
            )
        self.accelerator.backward(value)
        self.accelerator.clip_grad_norm_(list(self.parameters.values()), self.config.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        self.losses.append(mean)
        self.step += 1
        return mean

    def _average(self) -> None:
        import torch

        decay = ema_decay(self.config, self.step)
        with torch.no_grad():
            for k, average in self.ema.items():
                average.lerp_(self.parameters[k], 1 - decay)

    def finish(self) -> None:
        """Put the averaged weights into the module and the module on the CPU."""
        import torch

        with torch.no_grad():
            for k, average in self.ema.items():
                self.parameters[k].copy_(average)
        self.module.to("cpu")

    def tensors(self) -> dict[str, Tensor]:
        """All state as flat named CPU tensors."""
        named = {f"weights/{k}": v for k, v in self.module.state_dict().items()}
        named |= {f"ema/{k}": v for k, v in self.ema.items()}
        for k, p in self.parameters.items():
            named |= {f"adam/{k}/{part}": v for part, v in self.optimizer.state.get(p, {}).items()}
        return {k: v.detach().cpu().contiguous().clone() for k, v in named.items()}

    def load(self, tensors: dict[str, Tensor], step: int, losses: list[float]) -> None:
        """Inverse of `tensors`."""
        self.module.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("weights/")})
        for k, average in self.ema.items():
            average.copy_(tensors[f"ema/{k}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for i, k in enumerate(self.parameters):
            start = f"adam/{k}/"
            if mine := {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}:
                moments[i] = mine
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step, self.losses = step, list(losses)


@dataclass
class _Saver:
    """Checkpoints `step-N/` in one folder, each committed whole; the newest is kept."""

    folder: Path | None
    key: str
    every_s: float
    main: bool
    last_s: float = field(default_factory=time.monotonic)

    def save_if_due(self, run: _Run) -> None:
        """Write a checkpoint where enough time has passed."""
        if time.monotonic() - self.last_s >= self.every_s:
            self.save(run)

    def save(self, run: _Run) -> None:
        """Commit the state of `run`, then drop the older checkpoints."""
        if self.folder is None or not self.main:
            return
        target = self.folder / f"step-{run.step:08d}"
        if not target.exists():
            commit(target, lambda temporary: _write(temporary, run, self.key), ours=True)
        for old in self._found():
            if old != target:
                discard(old)
        self.last_s = time.monotonic()

    def restore(self, run: _Run) -> None:
        """Load the newest whole checkpoint of this very run, if there is one; what a kill left of another goes."""
        if self.folder is not None and self.main:
            sweep(self.folder, lambda name: name.startswith("step-"))
        for folder in self._found():
            try:
                state = _read(folder, self.key)
                refuse_incomplete(state[0], run.tensors(), run.parameters, folder)
            except ArtifactError as error:
                log.warning("this checkpoint is not used, its steps are trained again: %s", error)
                continue
            run.load(*state)
            log.info("training goes on from step %d of %d (%s)", run.step, run.config.steps, folder)
            return

    def _found(self) -> list[Path]:
        if self.folder is None:
            return []
        return sorted((p for p in self.folder.glob("step-*") if p.is_dir()), reverse=True)


def _write(folder: Path, run: _Run, key: str) -> dict[str, Any]:
    save_tensors(run.tensors(), folder / "state.safetensors")
    write_json(folder / "training.json", {"step": run.step, "losses": run.losses, "key": key})
    return {"id": key}


def _read(folder: Path, key: str) -> tuple[dict[str, Tensor], int, list[float]]:
    verify(folder)
    about = read_json(folder / "training.json")
    if about["key"] != key:
        raise ArtifactError(f"{folder}: it belongs to another config, seed, data or starting weights.")
    return read_tensors(folder / "state.safetensors"), about["step"], about["losses"]


def _weights_sha256(module: nn.Module) -> str:
    """SHA-256 (hex) over the names, dtypes, shapes and bytes of a module's state."""
    import torch

    total = hashlib.sha256()
    for k, v in module.state_dict().items():
        total.update(f"{k}|{v.dtype}|{tuple(v.shape)}|".encode())
        total.update(v.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@contextmanager
def _trainable(module: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients inside, evaluation mode without gradients afterwards."""
    module.eval().requires_grad_(True)
    try:
        yield
    finally:
        module.zero_grad(set_to_none=True)
        module.requires_grad_(False)


@contextmanager
def _accelerator(device: str) -> Iterator[tuple[Any, Share]]:
    """Accelerate's handle and this process's share; one process on one device, or as many as were launched."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise EnvironmentLacks(f'device: "{device}" given, but torch sees no CUDA device. Use device: cpu.')
    accelerator = Accelerator(cpu=kind == "cpu", mixed_precision="no", step_scheduler_with_optimizer=False)
    many = accelerator.num_processes > 1
    try:
        place = accelerator.device if many else torch.device(device)
        yield accelerator, Share(accelerator.process_index, accelerator.num_processes, place)
    finally:
        accelerator.free_memory()
        if not many:  # Accelerate keeps the device in a process-wide singleton; a later run may use another one
            AcceleratorState._reset_state(reset_partial_state=True)


def _record(losses: list[float]) -> dict[str, Any]:
    """Steps and a coarse loss curve: means over at most CURVE_POINTS equal stretches."""
    size = math.ceil(len(losses) / CURVE_POINTS)
    parts = [losses[i : i + size] for i in range(0, len(losses), size)]
    means = [sum(p) / len(p) for p in parts]
    return {
        "steps": len(losses),
        "loss": {"first": means[0], "last": means[-1], "curve": means, "stretch": size},
    }
