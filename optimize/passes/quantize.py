"""Post-training INT8: nvidia-modelopt's quantizers on convolutions and linears, calibrated along the model's own sampler.

Weights per output channel, activations per tensor. Layers that hurt more than they save (first and last convolution,
time embedding, shortcuts, norms: NVIDIA's list for diffusion U-Nets) compute in high precision; their weights are
stored in 16 bit, or, where `weight_only` says so, as INT8 codes that are widened before use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from optimize.configs import Config
from optimize.registry import PASSES

if TYPE_CHECKING:
    from torch import nn

    from optimize.calibration import Feed
    from optimize.context import Advance, Context
    from optimize.model import Model

KEEP = (
    "time_emb_proj|time_embedding|class_embedding|add_embedding|pos_embed|time_text_embed|context_embedder",
    "(^|[.])conv_in$|(^|[.])conv_out$|conv_shortcut|norm_out|x_embedder",
)
WEIGHT_ONLY = ("time_emb_proj|time_embedding|conv_shortcut",)


@PASSES.register("quantize")
class Quantize(Config):
    """INT8 weights and activations by post-training calibration."""

    format: Literal["int8"] = "int8"  # what weights and activations become
    samples: Annotated[int, Field(ge=1)] = 256  # images drawn for calibration; every network call of them counts
    batch: Annotated[int, Field(ge=1)] = 64  # images drawn at once
    calibration: Literal["max", "percentile"] = "max"  # range of an activation: its largest value, or a percentile
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99  # of |activation|, for calibration: percentile
    # 7: codes within +-63, which no CPU's 16-bit accumulators can saturate; 8: full range
    weight_bits: Literal[7, 8] = 7
    # linear layers: weights and activations, weights alone (computed in high precision), or neither. On CPUs a linear
    # layer of an image's few hundred positions costs more to round than it saves
    linear: Literal["int8", "weight_only", "keep"] = "int8"
    keep: tuple[str, ...] = KEEP  # regular expressions; a module path that matches one stays in high precision
    weight_only: tuple[str, ...] = WEIGHT_ONLY  # of the kept layers: stored as INT8, computed in high precision
    kept_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"  # how the weights that are kept are stored
    # a layer whose output is off by more (relative L2) is kept
    max_layer_error: Annotated[float, Field(gt=0)] | None = None

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
        """The fake-quantized model and the record {quantizers, kept_dtype, kept, layer_error, error_by_time, error}."""
        from optimize import quantizers as q
        from optimize.calibration import trajectory_inputs
        from optimize.network import TorchNetwork
        from optimize.parity import parity

        module = model.clone().module
        table = self._table(module)
        with context.progress("calibrate", 3) as advance:
            feeds = trajectory_inputs(model, self.samples, context.seed, self.batch)
            advance(1, f"{len(feeds)} network calls recorded")
            q.insert(module, table)
            self._calibrate(module, table, feeds, advance)
            errors = layer_errors(module, table, feeds)
            table = self._take_back(module, table, errors)
            advance(1, f"{sum(row['input'] is not None for row in table)} layers in INT8")
        q.round_weights(module, table, self.kept_dtype)
        q.store_compactly(module, table, self.kept_dtype)
        structure = {"quantizers": table, "kept_dtype": self.kept_dtype}
        quantized = model.with_module(module, {"pass": "quantize", "record": structure})
        record = {
            **structure,
            "kept": sorted({n for n, m in module.named_modules() if quantizable(m)} - int8_layers(table)),
            "layer_error": {n: round(e, 6) for n, e in sorted(errors.items(), key=lambda x: -x[1])},
            "error_by_time": call_errors(model, quantized, feeds),
            "error": parity(model, TorchNetwork(module, model.inputs))["relative_l2"],
        }
        return quantized, record

    def role(self, path: str, layer: nn.Module) -> str:
        """What becomes of the layer at `path`: "int8", "weight_only" or "keep"."""
        from torch import nn

        if any(re.search(text, path) for text in self.keep):
            return "weight_only" if any(re.search(text, path) for text in self.weight_only) else "keep"
        return self.linear if isinstance(layer, nn.Linear) else "int8"

    def _table(self, module: nn.Module) -> list[dict[str, Any]]:
        """Rows without ranges: the layers that compute in INT8, and those of which the weights alone become INT8."""
        rows: list[dict[str, Any]] = []
        for path, layer in module.named_modules():
            role = self.role(path, layer) if quantizable(layer) else "keep"
            if role == "int8":
                bits = {"bits": self.weight_bits, "axis": 0}
                rows.append({"module": path, "weight": bits, "input": {"bits": 8, "axis": None}})
            elif role == "weight_only":
                rows.append({"module": path, "weight": {"bits": 8, "axis": 0}, "input": None})
        return rows

    def _calibrate(self, module: nn.Module, table: list[dict[str, Any]], feeds: list[Feed], advance: Advance) -> None:
        """Set every quantizer's amax: weights from themselves, inputs from the recorded calls through the float network."""
        import torch

        from optimize import quantizers as q

        layers = [module.get_submodule(row["module"]) for row in table]
        if self.calibration == "percentile":
            for layer in (x for x in layers if x.input_quantizer.is_enabled):
                layer.input_quantizer.set_from_attribute_config({"calibrator": "histogram"})
        with torch.inference_mode():
            for quantizer in q.quantizers(module, table):
                quantizer.disable_quant()
                quantizer.enable_calib()
            for feed in feeds:
                module(**feed)
        for layer in layers:
            layer.weight_quantizer.load_calib_amax()
            if layer.input_quantizer.is_enabled:
                layer.input_quantizer.load_calib_amax(*self._method(), **self._options())
        for quantizer in q.quantizers(module, table):
            quantizer.disable_calib()
            quantizer.enable_quant()
        advance(1)

    def _method(self) -> tuple[str, ...]:
        return ("percentile",) if self.calibration == "percentile" else ()

    def _options(self) -> dict[str, float]:
        return {"percentile": self.percentile} if self.calibration == "percentile" else {}

    def _take_back(
        self, module: nn.Module, table: list[dict[str, Any]], errors: dict[str, float]
    ) -> list[dict[str, Any]]:
        """The calibrated table, without the layers that err too much; those become plain modules again."""
        from optimize import quantizers as q

        rows: list[dict[str, Any]] = []
        for row in table:
            path = row["module"]
            if self.max_layer_error is not None and errors[path] > self.max_layer_error:
                parent, _, name = path.rpartition(".")
                setattr(module.get_submodule(parent), name, module.get_submodule(path).export())
            else:
                rows.append(q.entry(path, module.get_submodule(path)))
        return rows

    @staticmethod
    def restore(module: nn.Module, record: dict[str, Any]) -> nn.Module:
        """Insert the record's quantizers; scales and weights come with the state dict."""
        from optimize import quantizers as q

        return q.store_compactly(q.insert(module, record["quantizers"]), record["quantizers"], record["kept_dtype"])


def quantizable(module: nn.Module) -> bool:
    """Whether a module is a kind that can be quantized: a 2-D convolution or a linear layer."""
    from torch import nn

    return isinstance(module, nn.Conv2d | nn.Linear)


def int8_layers(table: list[dict[str, Any]]) -> set[str]:
    """The modules that compute in INT8: weights and activations both."""
    return {row["module"] for row in table if row["input"] is not None}


def layer_errors(module: nn.Module, table: list[dict[str, Any]], feeds: list[Feed]) -> dict[str, float]:
    """{path: relative L2 between a layer's quantized and float output on the float network's activations}, the mean
    over at most eight of the recorded calls."""
    import torch

    from optimize import quantizers as q
    from optimize.ops.quantization import relative_l2

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

    hooks = [module.get_submodule(path).register_forward_hook(compare(path)) for path in found]
    with torch.inference_mode(), q.unquantized(module, table):
        for feed in feeds[:: max(1, len(feeds) // 8)][:8]:
            module(**feed)
    for hook in hooks:
        hook.remove()
    return {path: sum(values) / max(1, len(values)) for path, values in found.items()}


def call_errors(model: Model, quantized: Model, feeds: list[Feed]) -> list[dict[str, float]]:
    """[{t, relative_l2}] of the quantized against the float network at the sampler's own times, first batch of each."""
    import torch

    from optimize.ops.quantization import relative_l2

    first = {float(f["timestep"][0]): f for f in reversed(feeds)}
    with torch.inference_mode():
        pairs = {t: (model.denoiser.network(**f), quantized.denoiser.network(**f)) for t, f in first.items()}
    return [{"t": t, "relative_l2": relative_l2(*pairs[t])} for t in sorted(pairs)]
