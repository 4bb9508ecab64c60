"""Structured channel pruning of a denoiser to a budget of MACs, ranked by diffusion-aware Taylor importance.

torch-pruning's dependency graph (Fang et al., arXiv 2301.12900) says which slices of which layers go together; the
importance is Diff-Pruning's (Fang et al., NeurIPS 2023, arXiv 2305.10924), the selection is `pruning/groups.py`. Both the
inside of residual blocks and the trunk that residual sums and skips chain together are pruned, since only a thinner
trunk makes every layer cheaper. Heads of attention go whole, norms keep their groups where the widths allow it.
Networks with transformer blocks are pruned inside their blocks (`pruning/blocks.py`); their trunk stays as it is, but for
conditional U-Nets (`pruning/trunk.py`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimize.configs import Config
from optimize.errors import UserError
from optimize.registry import PASSES

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from optimize.diffusion.context import Context
    from optimize.diffusion.model import Model
    from optimize.pruning.dependency import Coupled, Slice
    from optimize.pruning.groups import Group, Term

log = logging.getLogger(__name__)
TOLERANCE = 0.03  # fraction of the MACs by which the budget may be missed
AFTER_QUANTIZED = "a quantized layer's scales belong to the channels it has; prune first, then quantize"


class Budget(Config):
    """What to take away."""

    macs: Annotated[float, Field(gt=0, lt=0.9)]
    """Fraction of the MACs to remove, between 0 and 0.9."""


@PASSES.register("prune")
class Prune(Config):
    """Remove whole channels and attention heads until `budget` is met; external channels never change."""

    budget: Budget
    """How much is taken away."""
    importance: Literal["diffusion_taylor", "magnitude", "random"] = "diffusion_taylor"
    """How channels are ranked; magnitude and random are there to compare with."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Taylor importance stops where a timestep's loss is below this share of the largest."""
    batch: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Samples the importance is measured on."""
    stride: Annotated[int, Field(ge=1, le=10_000)] = 40
    """Every stride-th timestep is used; 1 is the paper, at its cost."""
    round_to: Literal[1, 2, 4, 8, 16, 32] = 8
    """Widths become multiples of this, where the budget allows it."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest share of a group of channels that goes, where the budget allows it."""

    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset({"pruned"})
    refuses_after: ClassVar[dict[str, str]] = {"quantized": AFTER_QUANTIZED}

    def apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        """The pruned model, on the device of the given one, and the record. Raises UserError for a budget no choice of
        channels meets within 3 points (naming the largest reachable), missing data, or a quantized model."""
        from optimize.diffusion import macs
        from optimize.pruning import reshape

        refuse_quantized(model)
        before, work = macs.count(model), model.clone()
        work.module.requires_grad_(True)
        scoring = self._accumulate(work, context)
        looked = reshape.snapshot(work.module)
        plan = Plan(work, self, context.seed)
        groups = plan.remove(plan.choose(self.budget.macs))
        work.module.zero_grad(set_to_none=True)
        work.module.requires_grad_(False).to(next(model.module.parameters()).device)
        change = reshape.difference(looked, reshape.snapshot(work.module))
        pruned = model.with_module(work.module, {"pass": "prune", "record": change})
        sizes = compared(before, macs.count(pruned))
        log.info(
            "prune: %.1f %% of the MACs and %.1f %% of the parameters removed",
            *(100 * sizes[k] for k in ("macs_removed", "params_removed")),
        )
        record = {
            "importance": self.importance,
            **scoring,
            **sizes,
            "round_to": plan.round_to,
            "share": plan.share,
        }
        record["norm_groups"] = {k: v["num_groups"] for k, v in change["attributes"].items() if "num_groups" in v}
        return pruned, {**record, "groups": groups}

    @staticmethod
    def restore(module: nn.Module, record: dict[str, Any]) -> nn.Module:
        """Give an unpruned skeleton the recorded shapes and sizes; torch-pruning is not needed."""
        from optimize.pruning import reshape

        return reshape.apply(module, record)

    def _accumulate(self, work: Model, context: Context) -> dict[str, Any]:
        if self.importance != "diffusion_taylor":
            return {}
        if context.data is None:
            raise UserError(
                'prune.importance: "diffusion_taylor" needs training data, none was given. Add data, or use "magnitude".'
            )
        return accumulate_gradients(work, context, self.batch, self.stride, self.threshold)


def accumulate_gradients(model: Model, context: Context, batch: int, stride: int, threshold: float) -> dict[str, Any]:
    """Leave the gradients of sum_t L_t in `.grad`, t = 0, stride, 2 stride, ... until L_t / L_max < threshold.

    L_t is the MSE between the raw output and its true target on one seeded batch and one noise for all t (Diff-Pruning,
    algorithm 1), so it fits any head. Returns timesteps used, where it stopped (None: never), and the losses.
    """
    from optimize.pruning.importance import Cutoff

    times, cutoff = timesteps(model, stride), Cutoff(threshold)
    x, e, condition = scoring_batch(model, context, batch)
    losses: list[float] = []
    stopped: float | None = None
    model.module.to(context.device).eval()
    with context.progress("prune: importance", len(times)) as advance:
        for t in times:
            loss = raw_loss(model, x, e, t, condition)
            if _reached(cutoff, float(loss.detach()), t):
                stopped = t
                break
            loss.backward()
            losses.append(float(loss.detach()))
            advance(1, f"loss {losses[-1]:.4f}")
    model.module.to("cpu")
    return {
        "timesteps_used": len(losses),
        "stride": stride,
        "stopped_at": stopped,
        "threshold": threshold,
        "losses": losses,
    }


def _reached(cutoff: Any, loss: float, t: float) -> bool:
    try:
        return cutoff.reached(loss)
    except ValueError as error:
        raise UserError(f"prune: {error} at timestep {t:g}; the network or its data is broken.") from error


def timesteps(model: Model, stride: int) -> list[float]:
    """Native times from nearly clean to noisiest: every stride-th index, or as many evenly spaced where there is none."""
    import numpy as np

    schedule = model.denoiser.schedule
    if schedule.kind == "vp":
        return [float(t) for t in range(0, int(schedule.noisiest) + 1, stride)]
    count = max(1000 // stride, 1)
    return [float(t) for t in schedule.time(np.arange(1, count + 1) / count)]


def scoring_batch(model: Model, context: Context, batch: int) -> tuple[Tensor, Tensor, Any]:
    """Seeded (x, noise) (B,C,H,W) and their condition, that of every tenth the unconditional one where there is such."""
    import torch

    from optimize import rng
    from optimize.diffusion.context import conditioned
    from optimize.diffusion.denoiser import moved

    assert context.data is not None
    data = conditioned(context.data, model)
    rows = torch.from_numpy(rng.generator("prune", "rows", context.seed).permutation(len(data.images))[:batch].copy())
    x = data.images[rows].to(context.device)
    e = torch.from_numpy(rng.normal(tuple(x.shape), "prune", "noise", context.seed)).to(x)
    condition = None if model.denoiser.conditioning.kind == "none" else data.condition(rows)
    condition = model.denoiser.dropped(condition, torch.arange(len(rows)) % 10 == 9)
    return x, e, moved(condition, context.device)


def raw_loss(model: Model, x: Tensor, e: Tensor, t: float, condition: Any) -> Tensor:
    """Scalar MSE between the raw output at native time t and its true target."""
    denoiser, about = model.denoiser, model.denoiser.parameterization
    alpha, sigma = float(denoiser.schedule.alpha(t)), float(denoiser.schedule.sigma(t))
    raw = about.mean(denoiser.network(**denoiser.feed(alpha * x + sigma * e, t, condition)))
    return (raw - about.target(x, e, alpha, sigma)).square().mean()


class Plan:
    """The coupled groups of a network, what each layer costs, and what to remove. State: the traced graph."""

    def __init__(self, model: Model, config: Prune, seed: int) -> None:
        from optimize.diffusion import macs
        from optimize.diffusion.denoiser import moved
        from optimize.diffusion.network import example_inputs, nested, raw_output
        from optimize.pruning import blocks, dependency

        self.module, self.config, self.seed = model.module, config, seed
        self.round_to, self.share = int(config.round_to), config.max_share
        self.feed, self.graph = nested(moved(example_inputs(model.inputs, 1), _device(model))), None
        if blocks.opaque(model.module):
            self.coupled = blocks.known_groups(model.module, [spec.name for spec in model.inputs])
        else:
            self.graph = dependency.trace(model.module, self.feed, raw_output)
            self.coupled = dependency.coupled_groups(self.graph, model.module)
        self.scores = [self._importance(g) for g in self.coupled]
        self.terms = layer_terms(model.module, self.coupled, macs.by_module(model))

    def choose(self, budget: float) -> list[Group]:
        """Each group cut down to the units to remove. Tries steps of `round_to` and shares up to `max_share` first,
        then larger shares and finer steps; sets `round_to` and `share` to what was used.

        A first-order importance does not see that a group runs dry, hence the share. Raises UserError where nothing
        comes within TOLERANCE of the budget.
        """
        from optimize.pruning.groups import cost, select, smallest, up_to

        full, reachable = cost(self.terms, [g.width for g in self.coupled]), 0.0
        target, per_mac = (1 - budget) * full, self.config.importance == "diffusion_taylor"
        best: tuple[float, int, float, list[Group]] = (math.inf, 0, 0.0, [])
        for step, share in self._ladder():
            whole = [self._group(g, s, step) for g, s in zip(self.coupled, self.scores, strict=True)]
            groups = [up_to(g, share) for g in whole]
            taken = select(groups, self.terms, target, per_mac)
            left = cost(self.terms, [g.width_after(n) for g, n in zip(groups, taken, strict=True)])
            reachable = max(reachable, 1 - smallest(groups, self.terms) / full)
            chosen = [replace(g, units=g.units[:n]) for g, n in zip(groups, taken, strict=True)]
            best = min(best, (abs(1 - left / full - budget), step, share, chosen), key=lambda b: b[0])
            if best[0] <= TOLERANCE / 2:
                break
        if best[0] > TOLERANCE:
            raise UserError(
                f"prune.budget.macs: {budget:g} cannot be met within {TOLERANCE:g}; whole channels in multiples of "
                f"{step} remove at most {reachable:.2f} of this network. Ask for less, or set a smaller prune.round_to."
            )
        _, self.round_to, self.share, chosen = best
        return chosen

    def _ladder(self) -> list[tuple[int, float]]:
        """(step, share) in the order they are tried."""
        first, shares = self.config.round_to, [self.config.max_share, 0.75, 1.0]
        finer = sorted({first, min(first, 4)}, reverse=True)
        return [(step, share) for step in finer for share in shares if share >= self.config.max_share]

    def remove(self, chosen: list[Group]) -> list[dict[str, Any]]:
        """Remove the chosen channels from every coupled layer and repair the rest; returns what is kept, by group."""
        from optimize.pruning import blocks, dependency

        norms = dependency.norm_sizes(self.module)
        gone = [frozenset(g.removed(len(g.units)).tolist()) for g in chosen]
        pairs = list(zip(self.coupled, gone, strict=True))
        blocks.remove(pairs) if self.graph is None else dependency.remove(self.graph, pairs)
        whole = {p for c in self.coupled if self._whole(c, self.round_to) for p in c.norms}
        dependency.repair(self.module, norms, whole, self.feed)
        kept = [sorted(set(range(g.width)) - cut) for g, cut in zip(chosen, gone, strict=True)]
        return [{"name": g.name, "of": g.width, "kept": k} for g, k in zip(chosen, kept, strict=True)]

    def _group(self, coupled: Coupled, importance: np.ndarray, step: int) -> Group:
        """Units of whole heads, of whole norm groups, or of as many channels from every norm group."""
        from optimize.pruning.groups import Group, chunk_units, even_units

        blocks = coupled.norm_groups
        if coupled.head_width or self._whole(coupled, step):
            size = coupled.head_width or coupled.width // blocks
            units = chunk_units(importance, size, math.lcm(size, step))
        else:
            units = even_units(importance, blocks, math.lcm(blocks, step))
        return Group(coupled.name, importance, units)

    def _whole(self, coupled: Coupled, step: int) -> bool:
        """Whether channels leave by whole norm groups: where that is finer than taking some from every norm group."""
        size = coupled.width // coupled.norm_groups
        return not coupled.head_width and math.lcm(size, step) < math.lcm(coupled.norm_groups, step)

    def _importance(self, coupled: Coupled) -> np.ndarray:
        """(C,) float64: summed over all parameters of all coupled slices, or one seeded number per channel."""
        import torch

        from optimize import rng
        from optimize.pruning.importance import add_coupled, magnitude, taylor

        if self.config.importance == "random":
            return rng.uniform((coupled.width,), "prune", "random", coupled.name, self.seed)
        by_size = self.config.importance == "magnitude"
        total = torch.zeros(coupled.width, dtype=torch.float64)
        for part in coupled.slices:
            for weight, dim in sliced_parameters(part):
                if by_size:
                    add_coupled(total, magnitude(weight, dim), part.own, part.channel)
                elif weight.grad is not None:
                    add_coupled(total, taylor(weight, weight.grad, dim), part.own, part.channel)
        # Weights of different layers do not compare, so magnitude is measured within its group.
        return (total / total.mean() if by_size else total).numpy()


def _device(model: Model) -> Any:
    return next(model.module.parameters()).device


def sliced_parameters(part: Slice) -> list[tuple[Tensor, int]]:
    """(parameter, dimension that is cut) of a layer in a group; a bias is cut with the outputs only."""
    from torch import nn

    layer = part.layer
    dim = int(isinstance(layer, nn.Embedding)) if part.outputs else 1
    found = [(layer.weight, dim if layer.weight.dim() > 1 else 0)]
    bias = getattr(layer, "bias", None)
    if bias is not None and (part.outputs or bias.shape == layer.weight.shape):
        found.append((bias, 0))
    return found


def layer_terms(module: nn.Module, coupled: list[Coupled], costs: dict[str, int]) -> list[Term]:
    """One Term per module with MACs of its own: its share per input and output channel, and which groups these are."""
    from optimize.pruning.groups import Term

    inputs: dict[str, dict[int, int]] = {path: {} for path in costs}
    outputs: dict[str, dict[int, int]] = {path: {} for path in costs}
    for number, group in enumerate(coupled):
        for part in group.slices:
            if part.path in costs:
                (outputs if part.outputs else inputs)[part.path][number] = len(part.own) // group.width
            owner = part.path.rpartition(".")[0]
            if group.head_width and owner in costs and part.path.endswith((".to_q", ".query")):
                outputs[owner][number] = 1  # an attention's products are proportional to its inner width
    widths, terms = [g.width for g in coupled], []
    for path, macs in costs.items():
        rows, columns = layer_size(module.get_submodule(path))
        ins, outs = inputs[path], outputs[path]
        seen_in, seen_out = (sum(n * widths[g] for g, n in seen.items()) for seen in (ins, outs))
        rows, columns = rows or seen_in or 1, columns or seen_out or 1
        terms.append(Term(macs / (rows * columns), ins, outs, rows - seen_in, columns - seen_out))
    return terms


def layer_size(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) in channels of a convolution or linear layer; (0, 0) of anything else."""
    from torch import nn

    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.in_channels // layer.groups, layer.out_channels
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else (0, 0)


def compared(before: dict[str, int], after: dict[str, int]) -> dict[str, Any]:
    """Sizes before and after, and the fractions removed."""
    removed = {f"{k}_removed": 1 - after[k] / before[k] for k in ("macs", "params")}
    return {"before": before, "after": after, **removed}


def refuse_quantized(model: Model) -> None:
    """Raise UserError where an earlier edit quantized the model."""
    if any(edit["pass"] == "quantize" for edit in model.structure.edits):
        raise UserError(f"prune: this model is already quantized, and {AFTER_QUANTIZED}.")
