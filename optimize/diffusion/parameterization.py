"""From a network's raw output to (x^, e^), for every prediction type, and back to what a training loss compares."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from optimize.diffusion.solvers import split
from optimize.errors import unknown

if TYPE_CHECKING:
    from torch import Tensor

Prediction = Literal["epsilon", "sample", "v", "flow"]
_DIFFUSERS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v", "flow_prediction": "flow"}


@dataclass(frozen=True)
class Parameterization:
    """How a network is fed and read. `time` says what its timestep input means, the native time of the schedule, which
    is multiplied by `time_scale`; with `learned_variance` the output holds a variance behind its mean, along dim 1."""

    prediction: Prediction = "epsilon"
    time: Literal["index", "flow"] = "index"
    time_scale: float = 1.0
    learned_variance: bool = False

    def network_time(self, t: Tensor) -> Tensor:
        """The network's timestep input at native times `t`."""
        return t if self.time_scale == 1.0 else t * self.time_scale

    def mean(self, raw: Tensor) -> Tensor:
        """The raw output without a learned variance: what `split` and `target` speak of."""
        return raw.chunk(2, dim=1)[0] if self.learned_variance else raw

    def split(self, raw: Tensor, z: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        """(x^, e^), each shaped like `z`, from the raw output; alpha and sigma broadcast against `z`."""
        return split(self.prediction, raw, z, alpha, sigma)

    def target(self, x: Tensor, e: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """The raw output that would express (x, e) exactly: the regression target of training."""
        if self.prediction == "epsilon":
            return e
        if self.prediction == "sample":
            return x
        return alpha * e - sigma * x if self.prediction == "v" else e - x

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def from_diffusers(config: dict[str, Any]) -> Parameterization:
    """Parameterization of a diffusers scheduler config. A flow's timestep input is its time in training steps, 0 to 1000."""
    if "FlowMatch" in str(config.get("_class_name", "")):
        return Parameterization("flow", "flow", float(config.get("num_train_timesteps", 1000)))
    name = config.get("prediction_type", "epsilon")
    if name not in _DIFFUSERS:
        raise unknown("scheduler_config.json: prediction_type", str(name), _DIFFUSERS)
    return Parameterization(_DIFFUSERS[name])  # type: ignore[arg-type]
