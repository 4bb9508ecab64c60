"""Trains the class-conditional diffusion model of the digits example.

v-prediction (Salimans and Ho, 2022) on a squared-cosine schedule, with classifier-free guidance's condition
dropout (Ho and Salimans, 2022). All randomness is a function of seed and step, so a run that was stopped goes
on exactly where it was: `python -m examples.digits.train`, again.
"""

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel, __version__
from safetensors.torch import load_file, save_file

from examples.digits import data

NULL_CLASS = data.CLASSES  # the label that means "no condition"
MODEL = Path(__file__).parent / "model"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the shipped weights were trained."""

    steps: int = 3200
    batch: int = 64
    learning_rate: float = 1e-3  # peak; cosine to 0 after the warm-up
    warmup: int = 200  # steps
    weight_decay: float = 0.01
    gradient_clip: float = 1.0  # global L2 norm
    condition_dropout: float = 0.15  # share of labels replaced by the null class
    ema_decay: float = 0.999  # upper bound; min(ema_decay, (1 + step) / (10 + step))
    dtype: str = "float32"  # or "bfloat16": autocast, for processors with bfloat16 instructions
    seed: int = 0


def main() -> None:
    """Trains, writing a checkpoint and a snapshot of the averaged weights every `--save-every-s`."""
    options = arguments()
    config = Training(steps=options.steps, dtype=options.dtype)
    torch.set_num_threads(options.threads)
    state = State(config, options.checkpoint)
    images, labels = data.load("training")
    saved = time.monotonic()
    while state.step < config.steps:
        loss = train_step(state, images, labels)
        if state.step % 50 == 0:
            report(state, loss)
        if time.monotonic() - saved > options.save_every_s or state.step == config.steps:
            state.save(options.checkpoint)
            save_model(state.ema, scheduler(), MODEL)
            saved = time.monotonic()
    (MODEL.parent / "training.json").write_text(json.dumps(summary(state), indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=Training.dtype)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--checkpoint", type=Path, default=MODEL.parent / "checkpoint")
    parser.add_argument("--save-every-s", type=float, default=120.0)
    return parser.parse_args()


def unet() -> UNet2DModel:
    """1.1M parameters; (B, 1, 16, 16), timestep (B,), class_labels (B,) -> v (B, 1, 16, 16)."""
    return UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        dropout=0.1,
        num_class_embeds=data.CLASSES + 1,
    )


def scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
    )


class State:
    """Everything a step changes: weights, their average, AdamW's moments, the step and the time spent."""

    def __init__(self, config: Training, checkpoint: Path) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.network, self.ema = unet(), unet()
        self.ema.load_state_dict(self.network.state_dict())
        self.ema.eval().requires_grad_(False)
        self.network.train()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.alphas_cumprod = scheduler().alphas_cumprod
        self.step, self.spent_s, self.started = 0, 0.0, time.monotonic()
        if (checkpoint / "state.json").exists():
            self.load(checkpoint)

    def seconds(self) -> float:
        """Wall time of training so far, over all runs."""
        return self.spent_s + time.monotonic() - self.started

    def save(self, folder: Path) -> None:
        """Writes the tensors under a name of their own, then the JSON that points to them."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"state-{self.step}.safetensors"
        save_file(self.tensors(), folder / name)
        text = json.dumps({"file": name, "step": self.step, "seconds": self.seconds()} | asdict(self.config))
        (folder / "state.json.new").write_text(text)
        os.replace(folder / "state.json.new", folder / "state.json")
        for old in folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()

    def tensors(self) -> dict[str, torch.Tensor]:
        named = {f"network.{key}": value for key, value in self.network.state_dict().items()}
        named |= {f"ema.{key}": value for key, value in self.ema.state_dict().items()}
        for key, parameter in self.network.named_parameters():
            moments = self.optimizer.state[parameter]
            named[f"exp_avg.{key}"] = moments["exp_avg"]
            named[f"exp_avg_sq.{key}"] = moments["exp_avg_sq"]
        return named

    def load(self, folder: Path) -> None:
        """Goes on from `folder`. Raises ValueError where its seed or batch differ from this run's."""
        saved = json.loads((folder / "state.json").read_text())
        for key in ("seed", "batch"):
            if saved[key] != getattr(self.config, key):
                raise ValueError(f"{folder} was trained with {key} {saved[key]}; remove it to start anew")
        tensors = load_file(folder / saved["file"])
        self.network.load_state_dict(with_prefix(tensors, "network."))
        self.ema.load_state_dict(with_prefix(tensors, "ema."))
        self.step, self.spent_s = saved["step"], saved["seconds"]
        for key, parameter in self.network.named_parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": tensors[f"exp_avg.{key}"],
                "exp_avg_sq": tensors[f"exp_avg_sq.{key}"],
            }


def with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def train_step(state: State, images: torch.Tensor, labels: torch.Tensor) -> float:
    """One AdamW step on |v - v^|^2 at uniform t; returns the loss."""
    config = state.config
    torch.manual_seed(config.seed * 1_000_003 + state.step + 1)  # also what dropout draws from
    x, y = minibatch(images, labels, config, state.step)
    y = torch.where(torch.rand(len(y)) < config.condition_dropout, NULL_CLASS, y)
    t = torch.randint(len(state.alphas_cumprod), (len(x),))
    alpha = state.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - state.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    noise = torch.randn_like(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
        v = state.network(alpha * x + sigma * noise, t, class_labels=y).sample.float()
    loss = (v - (alpha * noise - sigma * x)).square().mean()
    loss.backward()
    update(state)
    return loss.item()


def minibatch(
    images: torch.Tensor, labels: torch.Tensor, config: Training, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `step`-th batch of an endless sequence of permutations of the data."""
    first, count = step * config.batch, len(images)
    epochs = range(first // count, (first + config.batch - 1) // count + 1)
    order = torch.cat([permutation(count, config.seed, epoch) for epoch in epochs])
    chosen = order[first % count :][: config.batch]
    return images[chosen], labels[chosen]


def permutation(count: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 500_000_000 + epoch)
    return torch.randperm(count, generator=generator)


def update(state: State) -> None:
    """Clips the gradient, steps AdamW and moves the average."""
    config = state.config
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.gradient_clip)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        averages, weights = list(state.ema.parameters()), list(state.network.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)


def learning_rate(config: Training, step: int) -> float:
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def report(state: State, loss: float) -> None:
    left_s = state.seconds() / state.step * (state.config.steps - state.step)
    print(
        f"step {state.step}/{state.config.steps}  loss {loss:.4f}  "
        f"{state.seconds() / state.step:.3f} s/step  {left_s / 60:.1f} min left",
        flush=True,
    )


def save_model(network: UNet2DModel, noise: DDPMScheduler, folder: Path) -> None:
    """Writes diffusers' pipeline layout; every file appears whole, under its name, at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".model-") as temporary:
        network.save_pretrained(Path(temporary) / "unet")
        noise.save_pretrained(Path(temporary) / "scheduler")
        (Path(temporary) / "model_index.json").write_text(json.dumps(model_index(), indent=2) + "\n")
        for file in sorted(Path(temporary).rglob("*")):
            if file.is_file():
                target = folder / file.relative_to(temporary)
                target.parent.mkdir(exist_ok=True)
                os.replace(file, target)


def model_index() -> dict[str, object]:
    return {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": __version__,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }


def summary(state: State) -> dict[str, object]:
    parameters = sum(parameter.numel() for parameter in state.network.parameters())
    return asdict(state.config) | {"parameters": parameters, "training_seconds": round(state.seconds(), 1)}


if __name__ == "__main__":
    main()
