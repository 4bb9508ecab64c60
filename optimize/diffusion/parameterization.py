"""From a network's raw output to (x^, e^), for every prediction type, and back to what a training loss compares."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from optimize.diffusion.scheduler_config import classes
from optimize.diffusion.scheduler_config.fields import known
from optimize.diffusion.solvers import PRECONDITIONED, fed, preconditioning, split
from optimize.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import Tensor

Prediction = Literal["epsilon", "sample", "v", "flow", "edm", "edm_v"]
_DIFFUSERS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v", "flow_prediction": "flow"}


@dataclass(frozen=True)
class Parameterization:
    """How a network is fed and read. `time` says what its timestep input means, the native time of the schedule or its
    logarithm, which is multiplied by `time_scale`; with `learned_variance` the output holds a variance behind its mean,
    along dim 1. The EDM heads are preconditioned by `sigma_data` (see `solvers.preconditioning`), those of a consistency
    model from its `boundary` on, the sigma at which it gives back what it was given."""

    prediction: Prediction = "epsilon"
    time: Literal["index", "flow", "ln_sigma"] = "index"
    time_scale: float = 1.0
    learned_variance: bool = False
    sigma_data: float = 0.0
    boundary: float = 0.0

    def network_time(self, t: Tensor) -> Tensor:
        """The network's timestep input at native times `t`."""
        if self.time == "ln_sigma":
            return (t.double().log() * self.time_scale).to(t.dtype)
        return t if self.time_scale == 1.0 else t * self.time_scale

    def network_input(self, z: Tensor, sigma: Any) -> Tensor:
        """What the network sees of `z`: EDM's is scaled to unit variance, the others' is as it is."""
        return fed(self.prediction, z, sigma, self.sigma_data)

    def mean(self, raw: Tensor) -> Tensor:
        """The raw output without a learned variance: what `split` and `target` speak of."""
        return raw.chunk(2, dim=1)[0] if self.learned_variance else raw

    def split(self, raw: Tensor, z: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        """(x^, e^), each shaped like `z`, from the raw output; alpha and sigma broadcast against `z`."""
        return split(self.prediction, raw, z, alpha, sigma, self.sigma_data, self.boundary)

    def target(self, x: Tensor, e: Tensor, alpha: Any, sigma: Any) -> Tensor:
        """The raw output that would express (x, e) exactly: the regression target of training."""
        if self.prediction == "epsilon":
            return e
        if self.prediction == "sample":
            return x
        if self.prediction in PRECONDITIONED:
            skip, out = preconditioning(self.prediction, sigma, self.sigma_data, self.boundary)
            return (x - skip * (x + sigma * e)) / out
        return alpha * e - sigma * x if self.prediction == "v" else e - x

    def to_json(self) -> dict[str, Any]:
        """JSON form; EDM's numbers where they matter."""
        found = asdict(self)
        return found if self.prediction in PRECONDITIONED else {k: v for k, v in found.items() if k not in EDM_ALONE}


EDM_ALONE = ("sigma_data", "boundary")


def from_diffusers(config: dict[str, Any]) -> Parameterization:
    """Parameterization of a diffusers scheduler config. A flow's timestep input is its time in training steps, 0 to 1000;
    EDM's is ln(sigma)/4, a consistency model's a thousand times that. An EDM scheduler with the head "sample", which
    diffusers does not have, is for a network that is the whole D(z; sigma), and is fed z and sigma as they are."""
    known(config)
    steps = float(classes.value(config, "num_train_timesteps", 1000))
    if classes.is_flow(config):
        return Parameterization("flow", "flow", steps)
    name = classes.value(config, "prediction_type") or "epsilon"
    if classes.is_consistency(config):
        low = float(classes.value(config, "sigma_min", 0.002))
        return Parameterization("edm", "ln_sigma", 250.0, sigma_data=_sigma_data(config), boundary=low)
    if classes.is_edm(config):
        if name == "sample":
            return Parameterization("sample")
        if name == "flow_prediction":
            raise unknown(
                f"{classes.FILE}: prediction_type of an EDM scheduler", name, ("epsilon", "sample", "v_prediction")
            )
        return Parameterization(
            "edm_v" if name == "v_prediction" else "edm", "ln_sigma", 0.25, sigma_data=_sigma_data(config)
        )
    if name == "flow_prediction":
        raise UserError(
            f'{classes.FILE}: prediction_type "flow_prediction" needs use_flow_sigmas: true, or a flow scheduler.'
        )
    return Parameterization(_DIFFUSERS[name])  # type: ignore[arg-type]


def _sigma_data(config: dict[str, Any]) -> float:
    """1 for Euler's scheduler, whose v head with continuous time is EDM's for data of unit variance."""
    return float(
        classes.value(config, "sigma_data")
        or (0.5 if "sigma_data" in classes.KNOWN[config["_class_name"]].fields else 1.0)
    )
