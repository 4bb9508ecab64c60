"""The sampling loop of an artifact without torch: `sampler.json`, a network given as a function, numpy.

A copy of this file, of `diffusion/solvers.py` and of `rng.py` lies in every served model. The arithmetic is the
library's, operation by operation in float64, so equal network outputs give equal images, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from optimize.diffusion.solvers import NEXT, Step, clipped, fed, guided, solve, split
from optimize.rng import noise

Network = Callable[[dict[str, np.ndarray]], np.ndarray]  # named inputs -> raw output (B, C, H, W)
PREDICTIONS = ("epsilon", "sample", "v", "flow", "edm", "edm_v")
NULL = "null."  # before a name: what takes its place in the unconditional branch


def refusals(about: dict[str, Any], inputs: Sequence[str]) -> list[str]:
    """Why this loop cannot draw from an artifact: its sampler.json and the names of its network's inputs, what is
    denoised first, the time second; empty where it can."""
    solver, conditioning = about["sampler"]["solver"], about["conditioning"]
    prediction, kind = about["parameterization"]["prediction"], conditioning["kind"]
    told = {"none": [], "class": ["class_labels"], "tensors": [t["name"] for t in conditioning.get("tensors", ())]}
    found = []
    if solver == "scheduler":
        found.append("solver scheduler is the loop of diffusers; name one in the recipe (sampler.solver: ddim, say)")
    elif solver not in NEXT:
        found.append(f'solver "{solver}" is not known. Allowed: {", ".join(NEXT)}')
    if prediction not in PREDICTIONS:
        found.append(f'prediction "{prediction}" is not known. Allowed: {", ".join(PREDICTIONS)}')
    if kind not in told:
        found.append(f'conditioning "{kind}" is not known. Allowed: {", ".join(told)}')
    elif set(inputs) != {*inputs[:2], *told[kind]}:
        wanted = ", ".join(["what is denoised", "its time", *told[kind]])
        found.append(f"the network takes {', '.join(inputs)}; the loop feeds {wanted}")
    if about["sampler"]["guidance"]["cfg"] and not guidable(conditioning):
        found.append("guidance cfg needs an unconditional branch (a null label or tensor), and this network has none")
    return found


def guidable(conditioning: Mapping[str, Any]) -> bool:
    """Whether a network has an unconditional branch."""
    return conditioning["null"] is not None or bool(conditioning.get("nulled"))


@dataclass(frozen=True)
class Asked:
    """What is to be drawn: seeds (B,) int64, and, where they are given, the label and the guidance weight of each (B,),
    tensors (B, ...) by name of the network's input, and under NULL + name those of the unconditional branch."""

    seeds: np.ndarray
    labels: np.ndarray | None = None
    weights: np.ndarray | None = None
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, which: np.ndarray) -> Asked:
        """Some of it: indices, or a mask (B,)."""
        labels, weights = (None if v is None else v[which] for v in (self.labels, self.weights))
        return Asked(self.seeds[which], labels, weights, {k: v[which] for k, v in self.tensors.items()})


def joined(asked: Sequence[Asked]) -> Asked:
    """Several as one; what is given in one is given in all."""
    labels = [a.labels for a in asked if a.labels is not None]
    weights = [a.weights for a in asked if a.weights is not None]
    return Asked(
        np.concatenate([a.seeds for a in asked]),
        np.concatenate(labels) if labels else None,
        np.concatenate(weights) if weights else None,
        {k: np.concatenate([a.tensors[k] for a in asked]) for k in asked[0].tensors},
    )


class Loop:
    """Draws images from seeds as `Model.sample` does, with `network` in the place of the model's.

    `names` are those of the network's inputs for what is denoised and for its time. `kept` are the conditions that lie
    with the model: a row a sample, taken in turn by seed, for inputs with a batch; and NULL + name.
    """

    def __init__(
        self,
        about: dict[str, Any],
        network: Network,
        names: tuple[str, str] = ("sample", "timestep"),
        kept: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._network, self._names, self._kept = network, names, kept or {}
        self._sampler, self._conditioning = about["sampler"], about["conditioning"]
        self._parameterization, self._levels = about["parameterization"], Levels(about["steps"])
        schedule = about["schedule"]
        usual = float(schedule.get("sigma_max", 1.0)) if schedule["kind"] == "ve" else 1.0
        self._scale, self._final = float(about.get("initial", usual)), float(about.get("final", 1.0))
        self._shape, self._limit = tuple(about["shape"]), about["limit"]
        self._specs = {t["name"]: t for t in self._conditioning.get("tensors", ())}

    def refusal(self, asked: Asked) -> str | None:
        """What is wrong with a request; None where nothing is."""
        about, folded = self._conditioning, self._sampler["guidance"]["folded"]
        seeds, labels, weights = asked.seeds, asked.labels, asked.weights
        if (seeds < 0).any():
            return f"seed: {int(seeds.min())} given, allowed 0 to {2**63 - 1}"
        if labels is not None and about["kind"] != "class":
            return "label: this model is not class-conditional; leave the input out"
        if labels is not None and not (known := self._known(labels)).all():
            first, last = self._numbered(np.array([0, about["classes"] - 1])).tolist()
            within = about["null"] is not None and first <= about["null"] <= last
            without = f" without {about['null']}, the null class" if within else ""
            return f"label: {int(labels[~known][0])} given, allowed {first} to {last}{without}"
        if weights is not None and folded is not None:
            return f"guidance: {folded} is folded into this network and cannot be changed; leave the input out"
        if weights is not None and not guidable(about):
            return "guidance: this model has no unconditional branch to guide with; leave the input out"
        if weights is not None and not (np.isfinite(weights) & (weights >= 0)).all():
            return f"guidance: {float(weights[~(np.isfinite(weights) & (weights >= 0))][0])} given, allowed 0 and above"
        return next((said for name in self._specs if (said := self._misfit(name, asked.tensors))), None)

    def _numbered(self, numbers: np.ndarray) -> np.ndarray:
        """Labels of classes by their number; the null label is none of them and passed over."""
        null = self._conditioning["null"]
        return numbers if null is None else numbers + (numbers >= null)

    def _known(self, labels: np.ndarray) -> np.ndarray:
        return np.isin(labels, self._numbered(np.arange(self._conditioning["classes"])))

    def _misfit(self, name: str, given: Mapping[str, np.ndarray]) -> str | None:
        """What is wrong with a given tensor and the one that takes its place in the unconditional branch."""
        if batched(self._specs[name]) and name not in given and name not in self._kept:
            return f"{name}: this model is told it and nothing of it is kept here; give it"
        value, null = (given.get(n, self._kept.get(n)) for n in (name, NULL + name))
        for key in (name, NULL + name):
            if key in given and not np.isfinite(given[key]).all():
                return f"{key}: it holds numbers that are not finite"
        if value is not None and null is not None and value.shape[1:] != null.shape[1:]:
            shapes = f"{value.shape[1:]} for each sample, and {NULL}{name} {null.shape[1:]}"
            return f"{name}: its shape is {shapes}; give both in the same"
        return None

    def draw(self, asked: Asked) -> np.ndarray:
        """Samples (B, *shape) float32, within the model's limit where it has one; what was left out is as `complete` has
        it. Guided and unguided samples are two batches, since they cost different work."""
        whole = self.complete(asked)
        images = np.empty((len(whole.seeds), *self._shape), np.float32)
        assert whole.weights is not None
        for which in (whole.weights != 0, whole.weights == 0):
            if which.any():
                images[which] = self._batch(whole[which])
        return images

    def complete(self, asked: Asked) -> Asked:
        """With what was left out: seed mod classes, the sampler's own weight, and the kept conditions' row seed mod N."""
        labels, weights, tensors = asked.labels, asked.weights, dict(asked.tensors)
        if self._conditioning["kind"] == "class" and labels is None:
            labels = self._numbered(asked.seeds % self._conditioning["classes"])
        if weights is None:
            weights = np.full(len(asked.seeds), self._sampler["guidance"]["cfg"] or 0.0)
        for name, spec in self._specs.items():
            if batched(spec):
                rows = self._kept.get(name)
                if name not in tensors and rows is not None:
                    tensors[name] = rows[asked.seeds % len(rows)]
                if name in self._conditioning["nulled"] and NULL + name not in tensors:
                    tensors[NULL + name] = self._null(spec, tensors[name])
        return Asked(asked.seeds, labels, weights, tensors)

    def _null(self, spec: Mapping[str, Any], value: np.ndarray) -> np.ndarray:
        """The kept null row, the null class, the input's constant stand-in (as it is), or zeros."""
        if NULL + spec["name"] in self._kept:
            return np.broadcast_to(self._kept[NULL + spec["name"]], value.shape)
        if spec["name"] == "class_labels" and self._conditioning["null"] is not None:
            return np.full_like(value, self._conditioning["null"])
        return np.zeros_like(value) if spec.get("fill", "normal") == "normal" else value

    def _batch(self, asked: Asked) -> np.ndarray:
        assert asked.weights is not None
        w = asked.weights.astype(np.float64).reshape(-1, *[1] * len(self._shape))

        def evaluate(z: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
            return self._predict(z, t, asked, w)

        z = noise(asked.seeds, self._shape).astype(np.float64) * self._scale
        last, levels = z, self._levels
        solver = "ddim" if self._sampler["steps"] == 1 else self._sampler["solver"]
        for state in solve(solver, levels, levels.times, z, evaluate, levels.arrivals):
            last = state.z if isinstance(state, Step) else state * self._final
        return (last if self._limit is None else last.clip(-self._limit, self._limit)).astype(np.float32)

    def _predict(self, z: np.ndarray, t: float, asked: Asked, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Guided and clipped (x^, e^) at native time t; all weights of a batch are zero, or none is."""
        interval, clip = self._sampler["guidance"]["interval"], self._sampler["clip"]
        inside = interval is None or interval[0] <= t <= interval[1]
        if w[0].item() and inside and guidable(self._conditioning):
            x, e = self._guided(z, t, asked, w)
        else:
            x, e = self._denoised(z, t, self._told(asked))
        if clip is None:
            return x, e
        kept = None if self._sampler.get("use_clipped_model_output", True) else e
        return clipped(self._levels, z, t, x, clip, kept)

    def _guided(self, z: np.ndarray, t: float, asked: Asked, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        told, null = self._told(asked), self._told(asked, null=True)
        if self._sampler["guidance"]["batched"]:
            both = {k: np.concatenate([v, null[k]]) if self._stacked(k) else v for k, v in told.items()}
            x, e = self._denoised(np.concatenate([z, z]), t, both)
            (x_c, x_u), (e_c, e_u) = np.split(x, 2), np.split(e, 2)
        else:
            (x_c, e_c), (x_u, e_u) = self._denoised(z, t, told), self._denoised(z, t, null)
        return guided(w, x_c, x_u), guided(w, e_c, e_u)

    def _told(self, asked: Asked, null: bool = False) -> dict[str, np.ndarray]:
        """What the network is told besides latents and time, in one of its branches."""
        if asked.labels is not None:
            labels = np.full_like(asked.labels, self._conditioning["null"]) if null else asked.labels
            return {"class_labels": labels}
        told = {}
        for name, spec in self._specs.items():
            value = asked.tensors[name] if batched(spec) else self._kept[name]
            told[name] = asked.tensors.get(NULL + name, value) if null else value
        return told

    def _stacked(self, name: str) -> bool:
        """Whether an input holds a row for every sample."""
        return name not in self._specs or batched(self._specs[name])

    def _denoised(self, z: np.ndarray, t: float, told: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """One network evaluation a sample; the network is fed float32. What is told under the latents' name are further
        channels, behind theirs."""
        latents, time = self._names
        head, sigma = self._parameterization["prediction"], self._levels.sigma(t)
        data, boundary = (self._parameterization.get(n, 0.0) for n in ("sigma_data", "boundary"))
        feed = {latents: fed(head, z, sigma, data).astype(np.float32), time: np.full(len(z), t, np.float32)}
        if self._parameterization["time"] == "ln_sigma":
            logarithm = np.log(feed[time].astype(np.float64))
            feed[time] = (logarithm * self._parameterization["time_scale"]).astype(np.float32)
        elif self._parameterization["time_scale"] != 1.0:
            feed[time] *= np.float32(self._parameterization["time_scale"])
        if latents in told:
            feed[latents] = np.concatenate([feed[latents], told[latents]], 1)
        raw = self._network({**feed, **{k: v for k, v in told.items() if k != latents}}).astype(np.float64)
        if self._parameterization["learned_variance"]:
            raw = raw[:, : z.shape[1]]
        return split(head, raw, z, self._levels.alpha(t), sigma, data, boundary)


def batched(spec: Mapping[str, Any]) -> bool:
    """Whether an input, as sampler.json describes it, holds a row for every sample."""
    return bool(spec["dims"]) and spec["dims"][0] == "B"


class Levels:
    """alpha and sigma at the times of the loop, as sampler.json lists them."""

    def __init__(self, steps: Sequence[dict[str, Any]]) -> None:
        self.times = [float(step["t"]) for step in steps]
        reached = [step.get("arrives", following) for step, following in pairwise(steps)]
        self.arrivals = [float(level["t"]) for level in reached]
        known = [*reached, *steps]
        self._alpha = {float(level["t"]): float(level["alpha"]) for level in known}
        self._sigma = {float(level["t"]): float(level["sigma"]) for level in known}

    def alpha(self, t: float) -> float:
        """Signal scale at a time of the loop."""
        return self._alpha[t]

    def sigma(self, t: float) -> float:
        """Noise scale at a time of the loop."""
        return self._sigma[t]
