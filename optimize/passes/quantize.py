"""Post-training INT8 or FP8: nvidia-modelopt's quantizers on convolutions and linears, calibrated along the model's own
sampler.

Activations per tensor; weights per output channel in INT8, per tensor in FP8. Layers that hurt more than they save
(see `optimize.quantization.eligible`) compute in high precision; their weights are stored in 16 bit, or, where `weight_only`
says so, as INT8 codes that are widened before use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from optimize.configs import AtOnce, Config, Count
from optimize.diffusion.network import TorchNetwork
from optimize.quantization.codes import Bits, exact_amax, relative_l2
from optimize.quantization.eligible import KEEP, WEIGHT_ONLY
from optimize.registry import PASSES

if TYPE_CHECKING:
    from torch import nn

    from optimize.diffusion.context import Context
    from optimize.diffusion.model import Model
    from optimize.quantization.calibration import Feed


@PASSES.register("quantize")
class Quantize(Config):
    """8-bit weights and activations by post-training calibration."""

    format: Literal["int8", "fp8"] = "int8"
    """What weights and activations become; fp8 is E4M3."""
    inputs: Literal["trajectory", "noise"] = "trajectory"
    """What the ranges of activations are taken from: the calls of the model's own sampler, or, for a network too large
    to draw images from here, seeded noise at a few noise levels."""
    levels: Annotated[int, Field(ge=1, le=1000)] = 10
    """With inputs noise: noise levels from nearly clean to noisiest."""
    samples: Count = 256
    """Images drawn (every network call of them counts), or fed at each level."""
    batch: AtOnce = 64
    """Images at once."""
    calibration: Literal["max", "percentile"] = "max"
    """Range of an activation: its largest value, or a percentile."""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """With calibration percentile: of |activation|."""
    weight_bits: Literal[7, 8] = 7
    """Bits of INT8 weights. 7: codes within +-63, which no CPU's 16-bit accumulators can saturate; 8: full range."""
    weight_range: Literal["channel", "tensor"] | None = None
    """One range for every output channel of a weight, or one for all; by default channel for int8, tensor for fp8.
    Where every channel has its own, TensorRT-RTX 1.7 writes the output of a convolution in FP32, with one scale in 16
    bit."""
    linear: Literal["quantize", "weight_only", "keep"] = "quantize"
    """Linear layers: weights and activations, weights alone (computed in high precision), or neither. On CPUs a linear
    layer of an image's few hundred positions costs more to round than it saves."""
    keep: tuple[str, ...] = KEEP
    """Regular expressions; a layer whose module path matches one stays in high precision."""
    weight_only: tuple[str, ...] = WEIGHT_ONLY
    """Regular expressions; of the kept layers, those that match are stored as INT8 and computed in high precision."""
    kept_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """How the weights that are kept are stored. Step sizes are numbers of it as well, so a graph in it loses
    nothing."""
    max_layer_error: Annotated[float, Field(gt=0)] | None = None
    """A layer whose output is off by more (relative L2) is kept; by default none is."""

    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset({"quantized"})
    refuses_after: ClassVar[dict[str, str]] = {"quantized": "the network is quantized already; quantize once, last"}

    @field_validator("keep", "weight_only")
    @classmethod
    def _expressions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                re.compile(text)
            except re.error as error:
                raise ValueError(f'"{text}" is no regular expression ({error})') from None
        return value

    def apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        """The fake-quantized model and the record {quantizers, kept_dtype, kept {layer: why}, layer_error,
        error_by_time, error, calibration {calls, inputs}}.

        Raises UserError where nothing in the network can be quantized."""
        from optimize.quantization import fake_quant as q

        module = model.clone().module
        table, kept = self.plan(module)
        with context.progress("calibrate", 3) as advance:
            feeds = self.feeds(model, context.seed)
            advance(1, f"{len(feeds)} network calls recorded")
            q.insert(module, table)
            table = self._calibrate(module, table, feeds, kept)
            advance(1)
            errors = layer_errors(module, table, feeds)
            table = self._take_back(module, table, errors, kept)
            advance(1, f"{len(q.formats(table))} layers in {self.format.upper()}")
        q.round_weights(module, table, self.kept_dtype)
        q.store_compactly(module, table, self.kept_dtype)
        structure = {"quantizers": table, "kept_dtype": self.kept_dtype}
        quantized = model.with_module(module, {"pass": "quantize", "record": structure})
        record = {
            **structure,
            "kept": dict(sorted(kept.items())),
            "layer_error": {n: round(e, 6) for n, e in sorted(errors.items(), key=lambda x: -x[1])},
            "error_by_time": call_errors(model, quantized, feeds),
            "error": self._error(model, quantized),
            "calibration": {"inputs": self.inputs, "calls": len(feeds)},
        }
        return quantized, record

    def plan(self, module: nn.Module) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """(rows without ranges: the layers that compute in the format, and those of which the weights alone become
        INT8; {layer that computes in high precision: why}). UserError where there are none of the first."""
        from optimize.errors import UserError
        from optimize.quantization.eligible import layers

        rows: list[dict[str, Any]] = []
        kept: dict[str, str] = {}
        for path, layer in layers(module):
            role, why = self.role(path, layer)
            if why:
                kept[path] = why
            if role == "quantize":
                rows.append({"module": path, "weight": self._weight(), "input": {"bits": self._bits(8), "axis": None}})
            elif role == "weight_only":
                rows.append({"module": path, "weight": {"bits": 8, "axis": 0}, "input": None})
        if not rows:
            raise UserError(
                f"quantize: no layer of {type(module).__name__} would be quantized to {self.format.upper()}: "
                f"{len(kept)} convolutions and linear layers are kept{_first_reasons(kept)}. Narrow `keep`, set "
                "`linear: quantize`, or leave the pass out."
            )
        return rows, kept

    def role(self, path: str, layer: nn.Module) -> tuple[str, str]:
        """What becomes of the layer at `path` ("quantize", "weight_only" or "keep"), and why where it is not the first."""
        from torch import nn

        from optimize.quantization.eligible import matching, unfit

        if (found := matching(path, self.keep)) is not None:
            narrow = matching(path, self.weight_only) is not None
            return ("weight_only" if narrow else "keep"), f"keep: {found}"
        if self.linear != "quantize" and isinstance(layer, nn.Linear):
            return self.linear, f"linear: {self.linear}"
        why = unfit(layer, self.format)
        return ("keep" if why else "quantize"), why

    def _bits(self, integers: int) -> Bits:
        return "e4m3" if self.format == "fp8" else integers

    def _weight(self) -> dict[str, Any]:
        each = self.weight_range or ("tensor" if self.format == "fp8" else "channel")
        return {"bits": self._bits(self.weight_bits), "axis": 0 if each == "channel" else None}

    def feeds(self, model: Model, seed: int) -> list[Feed]:
        """The network inputs that ranges are taken from, a dictionary a call."""
        from optimize.quantization.calibration import noised_feeds, trajectory_inputs

        if self.inputs == "noise":
            return noised_feeds(model, self.samples, seed, self.batch, self.levels)
        return trajectory_inputs(model, self.samples, seed, self.batch)

    def _error(self, model: Model, quantized: Model) -> float:
        """Worst relative L2 over noise levels, of no larger batches and no more levels than calibration had."""
        from optimize.diffusion.parity import parity

        levels, batch = min(10, self.levels), min(8, self.batch, self.samples)
        return parity(model, quantized.denoiser.network, levels, batch)["relative_l2"]

    def _calibrate(
        self, module: nn.Module, table: list[dict[str, Any]], feeds: list[Feed], kept: dict[str, str]
    ) -> list[dict[str, Any]]:
        """Set every quantizer's amax: weights from themselves, inputs from the recorded calls through the float network.
        Returns the table without the layers that were never called, which are plain again."""
        import torch

        from optimize.quantization import fake_quant as q

        if self.calibration == "percentile":
            for layer in (x for x in _layers(module, table) if x.input_quantizer.is_enabled):
                layer.input_quantizer.set_from_attribute_config({"calibrator": "histogram"})
        run = TorchNetwork(module, ())
        with torch.inference_mode():
            for quantizer in q.quantizers(module, table):
                quantizer.disable_quant()
                quantizer.enable_calib()
            for feed in feeds:
                run(**feed)
        table = self._called(module, table, kept)
        for layer in _layers(module, table):
            layer.weight_quantizer.load_calib_amax()
            if layer.input_quantizer.is_enabled:
                layer.input_quantizer.load_calib_amax(*self._method(), **self._options())
        dtype = getattr(torch, q.DTYPES[self.kept_dtype])
        for quantizer in q.quantizers(module, table):
            quantizer.amax = exact_amax(quantizer.amax, q.bits_of(quantizer), dtype)
            quantizer.disable_calib()
            quantizer.enable_quant()
        return table

    @staticmethod
    def _called(module: nn.Module, table: list[dict[str, Any]], kept: dict[str, str]) -> list[dict[str, Any]]:
        rows = []
        for row in table:
            if module.get_submodule(row["module"]).weight_quantizer._calibrator.compute_amax() is None:
                kept[row["module"]] = "never called"
                _make_plain(module, row["module"])
            else:
                rows.append(row)
        return rows

    def _method(self) -> tuple[str, ...]:
        return ("percentile",) if self.calibration == "percentile" else ()

    def _options(self) -> dict[str, float]:
        return {"percentile": self.percentile} if self.calibration == "percentile" else {}

    def _take_back(
        self, module: nn.Module, table: list[dict[str, Any]], errors: dict[str, float], kept: dict[str, str]
    ) -> list[dict[str, Any]]:
        """The calibrated table, without the layers that err too much; those become plain modules again."""
        from optimize.quantization import fake_quant as q

        rows: list[dict[str, Any]] = []
        for row in table:
            path = row["module"]
            if self.max_layer_error is not None and errors[path] > self.max_layer_error:
                kept[path] = f"error {errors[path]:.3g} above {self.max_layer_error:g}"
                _make_plain(module, path)
            else:
                rows.append(q.entry(path, module.get_submodule(path)))
        return rows

    @staticmethod
    def restore(module: nn.Module, record: dict[str, Any]) -> nn.Module:
        """Insert the record's quantizers; scales and weights come with the state dict."""
        from optimize.plain.shapes import refuse_misshapen
        from optimize.quantization import fake_quant as q

        refuse_misshapen(record, q.Record, "structure.json: a record of quantizers")
        return q.store_compactly(q.insert(module, record["quantizers"]), record["quantizers"], record["kept_dtype"])


def _layers(module: nn.Module, table: list[dict[str, Any]]) -> list[Any]:
    return [module.get_submodule(row["module"]) for row in table]


def _make_plain(module: nn.Module, path: str) -> None:
    """Take the quantizers of the layer at `path` away."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, module.get_submodule(path).export())


def _first_reasons(kept: dict[str, str], most: int = 3) -> str:
    return f" ({'; '.join(f'{n}: {why}' for n, why in list(kept.items())[:most])})" if kept else ""


def layer_errors(module: nn.Module, table: list[dict[str, Any]], feeds: list[Feed]) -> dict[str, float]:
    """{path: relative L2 between a layer's quantized and float output on the float network's activations}, the mean
    over at most eight of the recorded calls."""
    import torch

    from optimize.quantization import fake_quant as q

    found: dict[str, list[float]] = {row["module"]: [] for row in table}

    def compare(path: str) -> Any:
        def hook(layer: Any, given: tuple[Any, ...], output: Any) -> None:
            pair = [x for x in (layer.weight_quantizer, layer.input_quantizer) if x.is_enabled]
            for quantizer in pair:
                quantizer.enable_quant()
            found[path].append(relative_l2(output, layer.forward(*given)))
            for quantizer in pair:
                quantizer.disable_quant()

        return hook

    run = TorchNetwork(module, ())
    hooks = [module.get_submodule(path).register_forward_hook(compare(path)) for path in found]
    with torch.inference_mode(), q.unquantized(module, table):
        for feed in feeds[:: max(1, len(feeds) // 8)][:8]:
            run(**feed)
    for hook in hooks:
        hook.remove()
    return {path: sum(values) / max(1, len(values)) for path, values in found.items()}


def call_errors(model: Model, quantized: Model, feeds: list[Feed]) -> list[dict[str, float]]:
    """[{t, relative_l2}] of the quantized against the float network at the sampler's own times, first batch of each."""
    import torch

    first = {float(f["timestep"][0]): f for f in reversed(feeds)}
    with torch.inference_mode():
        pairs = {t: (model.denoiser.network(**f), quantized.denoiser.network(**f)) for t, f in first.items()}
    return [{"t": t, "relative_l2": relative_l2(*pairs[t])} for t in sorted(pairs)]
