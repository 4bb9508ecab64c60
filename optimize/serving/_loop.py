"""The sampling loop of an artifact without torch: `sampler.json`, a network given as a function, numpy.

A copy of this file, of `ops/solvers.py` and of `rng.py` lies in every served model. The arithmetic is the library's,
operation by operation in float64, so equal network outputs give equal images, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from optimize.ops.solvers import NEXT, Step, clipped, guided, solve, split
from optimize.rng import noise

Network = Callable[[dict[str, np.ndarray]], np.ndarray]  # named inputs -> raw output (B, C, H, W)
PREDICTIONS = ("epsilon", "sample", "v", "flow")
INPUTS = {"none": ("sample", "timestep"), "class": ("sample", "timestep", "class_labels")}


def refusals(about: dict[str, Any], inputs: Sequence[str]) -> list[str]:
    """Why this loop cannot draw from an artifact: its sampler.json and the names of its network's inputs; empty where
    it can."""
    solver, kind = about["sampler"]["solver"], about["conditioning"]["kind"]
    prediction = about["parameterization"]["prediction"]
    found = []
    if solver not in NEXT:
        found.append(f'solver "{solver}" is not known. Allowed: {", ".join(NEXT)}')
    if prediction not in PREDICTIONS:
        found.append(f'prediction "{prediction}" is not known. Allowed: {", ".join(PREDICTIONS)}')
    if kind not in INPUTS:
        found.append(f'conditioning "{kind}" is not known. Allowed: {", ".join(INPUTS)}')
    elif sorted(inputs) != sorted(INPUTS[kind]):
        found.append(f"the network takes {', '.join(inputs)}; the loop feeds {', '.join(INPUTS[kind])}")
    if about["sampler"]["guidance"]["cfg"] and about["conditioning"]["null"] is None:
        found.append("guidance cfg needs an unconditional branch (a null label), and this network has none")
    return found


class Loop:
    """Draws images from seeds as `Model.sample` does, with `network` in the place of the model's."""

    def __init__(self, about: dict[str, Any], network: Network) -> None:
        self._network = network
        self._sampler, self._conditioning = about["sampler"], about["conditioning"]
        self._prediction = about["parameterization"]["prediction"]
        self._levels = Levels(about["steps"])
        schedule = about["schedule"]
        self._scale = float(schedule["sigma_max"]) if schedule["kind"] == "ve" else 1.0
        self._shape = tuple(about["shape"])

    def refusal(
        self, seeds: np.ndarray, labels: np.ndarray | None = None, weights: np.ndarray | None = None
    ) -> str | None:
        """What is wrong with a request's seeds (B,), labels (B,) and guidance weights (B,); None where nothing is."""
        about, folded = self._conditioning, self._sampler["guidance"]["folded"]
        if (seeds < 0).any():
            return f"seed: {int(seeds.min())} given, allowed 0 to {2**63 - 1}"
        if labels is not None and about["kind"] != "class":
            return "label: this model is not class-conditional; leave the input out"
        if labels is not None and ((labels < 0) | (labels >= about["classes"])).any():
            wrong = labels[(labels < 0) | (labels >= about["classes"])][0]
            return f"label: {int(wrong)} given, allowed 0 to {about['classes'] - 1}"
        if weights is not None and folded is not None:
            return f"guidance: {folded} is folded into this network and cannot be changed; leave the input out"
        if weights is not None and about["null"] is None:
            return "guidance: this model has no unconditional branch to guide with; leave the input out"
        if weights is not None and not (np.isfinite(weights) & (weights >= 0)).all():
            return f"guidance: {float(weights[~(np.isfinite(weights) & (weights >= 0))][0])} given, allowed 0 and above"
        return None

    def draw(
        self, seeds: np.ndarray, labels: np.ndarray | None = None, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Images (B,C,H,W) float32 in [-1, 1] of seeds (B,) int64; label and guidance weight (B,) of each where given,
        else as `complete` has it. Guided and unguided samples are two batches, since they cost different work."""
        _, labels, weights = self.complete(seeds, labels, weights)
        images = np.empty((len(seeds), *self._shape), np.float32)
        for which in (weights != 0, weights == 0):
            if which.any():
                images[which] = self._batch(seeds[which], None if labels is None else labels[which], weights[which])
        return images

    def complete(
        self, seeds: np.ndarray, labels: np.ndarray | None = None, weights: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """(seeds, labels, weights) with what was left out: seed mod classes, and the sampler's own weight."""
        if self._conditioning["kind"] == "class" and labels is None:
            labels = seeds % self._conditioning["classes"]
        if weights is None:
            weights = np.full(len(seeds), self._sampler["guidance"]["cfg"] or 0.0)
        return seeds, labels, weights

    def _batch(self, seeds: np.ndarray, labels: np.ndarray | None, weights: np.ndarray) -> np.ndarray:
        w = weights.astype(np.float64).reshape(-1, *[1] * len(self._shape))

        def evaluate(z: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
            return self._predict(z, t, labels, w)

        z = noise(seeds, self._shape).astype(np.float64) * self._scale
        last = z
        for state in solve(self._sampler["solver"], self._levels, self._levels.times, z, evaluate):
            last = state.z if isinstance(state, Step) else state
        return last.clip(-1, 1).astype(np.float32)

    def _predict(
        self, z: np.ndarray, t: float, labels: np.ndarray | None, w: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Guided and clipped (x^, e^) at native time t; all weights of a batch are zero, or none is."""
        interval, clip = self._sampler["guidance"]["interval"], self._sampler["clip"]
        inside = interval is None or interval[0] <= t <= interval[1]
        if w[0].item() and inside and labels is not None:
            x, e = self._guided(z, t, labels, w)
        else:
            x, e = self._denoised(z, t, labels)
        return (x, e) if clip is None else clipped(self._levels, z, t, x, clip)

    def _guided(self, z: np.ndarray, t: float, labels: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nulls = np.full_like(labels, self._conditioning["null"])
        if self._sampler["guidance"]["batched"]:
            x, e = self._denoised(np.concatenate([z, z]), t, np.concatenate([labels, nulls]))
            (x_c, x_u), (e_c, e_u) = np.split(x, 2), np.split(e, 2)
        else:
            (x_c, e_c), (x_u, e_u) = self._denoised(z, t, labels), self._denoised(z, t, nulls)
        return guided(w, x_c, x_u), guided(w, e_c, e_u)

    def _denoised(self, z: np.ndarray, t: float, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """One network evaluation a sample; the network is fed float32."""
        feed = {"sample": z.astype(np.float32), "timestep": np.full(len(z), t, np.float32)}
        if labels is not None:
            feed["class_labels"] = labels
        raw = self._network(feed).astype(np.float64)
        return split(self._prediction, raw, z, self._levels.alpha(t), self._levels.sigma(t))


class Levels:
    """alpha and sigma at the times of the loop, as sampler.json lists them."""

    def __init__(self, steps: Sequence[dict[str, float]]) -> None:
        self.times = [float(step["t"]) for step in steps]
        self._alpha = {float(step["t"]): float(step["alpha"]) for step in steps}
        self._sigma = {float(step["t"]): float(step["sigma"]) for step in steps}

    def alpha(self, t: float) -> float:
        """Signal scale at a time of the loop."""
        return self._alpha[t]

    def sigma(self, t: float) -> float:
        """Noise scale at a time of the loop."""
        return self._sigma[t]
