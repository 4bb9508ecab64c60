"""Model: denoiser + sampler + structure. Passes map Model to Model; `Model.sample` draws images from seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from optimize import rng
from optimize.diffusion.denoiser import Denoiser, moved
from optimize.diffusion.network import Network, TensorSpec, TorchNetwork
from optimize.diffusion.sampling import Sampler, sample

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Structure:
    """What rebuilds the network without pickle: a registered architecture, its config, and the passes' edits in order.

    An edit is `{"pass": name, "record": {...}}`; only passes that change modules or shapes leave one.
    """

    architecture: str
    config: dict[str, Any]
    edits: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON form, as in structure.json."""
        return {"architecture": self.architecture, "config": self.config, "edits": list(self.edits)}


@dataclass(frozen=True)
class Model:
    """A denoiser with the sampler it is used with. `shape` is (C, H, W) of one sample, or (C, L), or (L, C) of packed
    latents; `id` its content address. Samples are clipped to +-`limit`, None for latents. `conditions` are given tensors
    by input name, a row a sample and taken in turn (see `optimize.diffusion.conditions`); without them, seeded ones stand in."""

    denoiser: Denoiser
    sampler: Sampler
    structure: Structure
    shape: tuple[int, ...]
    id: str = ""
    source: dict[str, Any] = field(default_factory=dict)
    limit: float | None = 1.0
    conditions: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    @property
    def module(self) -> nn.Module:
        """The torch module inside (raises TypeError where the network is not a torch one)."""
        network = self.denoiser.network
        if not isinstance(network, TorchNetwork):
            raise TypeError(f"{type(network).__name__} is a runner, not a torch network: passes need the torch model")
        return network.module

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input specs of the network."""
        return self.denoiser.network.inputs

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        return self.sampler.nfe(self.denoiser.schedule)

    def clone(self) -> Model:
        """A model whose weights may be changed without touching this one."""
        return self.with_module(copy.deepcopy(self.module))

    def with_module(self, module: nn.Module, edit: dict[str, Any] | None = None) -> Model:
        """The same model around another torch module; `edit` is appended to the structure."""
        structure = self.structure
        if edit is not None:
            structure = replace(structure, edits=(*structure.edits, edit))
        return replace(
            self, denoiser=self.denoiser.with_network(TorchNetwork(module, self.inputs)), structure=structure
        )

    def with_network(self, network: Network) -> Model:
        """The same model run by another network, e.g. a runner."""
        return replace(self, denoiser=self.denoiser.with_network(network))

    def labels(self, seeds: Sequence[int]) -> Tensor | None:
        """Class of each seed, number `seed mod classes` (B,) int64; None for a model that has no classes."""
        import torch

        conditioning = self.denoiser.conditioning
        return torch.tensor([conditioning.label(s) for s in seeds]) if conditioning.kind == "class" else None

    def condition(self, seeds: Sequence[int]) -> Any:
        """What the samples of these seeds are conditioned on: labels (B,), tensors by name, or None."""
        from optimize.diffusion.conditions import rows

        about = self.denoiser.conditioning
        return self.labels(seeds) if about.kind != "tensors" else rows(about, self.conditions, seeds)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Initial unit noise (B,C,H,W) float32; each sample depends on its own seed alone."""
        import torch

        return torch.from_numpy(rng.noise(list(seeds), self.shape))

    def sample(
        self,
        seeds: Sequence[int],
        batch: int = 64,
        sampler: Sampler | None = None,
        done: Callable[[int], None] | None = None,
        device: str = "cpu",
    ) -> Tensor:
        """Images (N,C,H,W) float32 in [-1, 1], or latents, one per seed; `done(n)` is called with the images made by each batch.

        The sampler's state, and the images, are on `device`; a seed's noise is the same on all of them. Raises UserError
        for a sampler with guidance where no unconditional branch is known.
        """
        import torch

        self.denoiser.conditioning.check_guidance((sampler or self.sampler).guidance.cfg)
        made = []
        with torch.inference_mode():
            for start in range(0, len(seeds), batch):
                part = list(seeds[start : start + batch])
                noise, condition = self.noise(part).to(device), moved(self.condition(part), device)
                x = sample(sampler or self.sampler, self.denoiser, noise, condition)
                made.append((x if self.limit is None else x.clamp(-self.limit, self.limit)).float())
                if done:
                    done(len(part))
        return torch.cat(made)
