"""The networks of a diffusers pipeline as ONNX graphs in optimum's layout (optimum-onnx 0.1): a folder, names, dims each.

optimum reads `FOLDER/model.onnx` with `FOLDER/config.json`, feeds inputs by name and knows outputs by name; its I/O
binding computes output dims from the names of input dims ("latent_height * 8"), so these names are part of the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

from optimize import rng
from optimize.architectures.known import architecture
from optimize.diffusion.network import TensorSpec, example_inputs, raw_output

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

Call = Callable[[Any, dict[str, Any]], Any]  # (network, inputs by name) -> its outputs in order
BATCH, SEQUENCE, PACKED = "batch_size", "sequence_length", "packed_height_width"
OUTPUTS = {"unet": "out_sample", "transformer": "out_hidden_states"}
WORDS = {"B": BATCH, "H": "height", "W": "width", "L": SEQUENCE, "S": PACKED}  # of this library's symbols


@dataclass(frozen=True)
class Part:
    """One graph: how the network is called, with what, and the names and dims of what comes out. `steps` holds the number
        that a symbolic dim must be a multiple of, `longest` the largest value of one. `native` holds the inputs in this library's
    symbols, where its own exporter traces the network."""

    folder: str
    network: nn.Module
    call: Call
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: dict[str, int] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    tokens: int = 2  # whole numbers fed are below this
    words: int = 7  # tokens of the shortest text fed
    native: tuple[TensorSpec, ...] = ()


def text_encoder(folder: str, network: Any) -> Part:
    """The text encoder in `folder`, a T5 encoder or a CLIP text model."""
    return t5_encoder(folder, network) if network.config.model_type == "t5" else clip_encoder(folder, network)


def t5_encoder(folder: str, network: Any) -> Part:
    """A T5 encoder: token ids, padding among them as words, to last_hidden_state."""
    config = network.config
    return Part(
        folder,
        network,
        lambda network, feed: network(input_ids=feed["input_ids"]).last_hidden_state,
        (TensorSpec("input_ids", (BATCH, SEQUENCE), "int64"),),
        (TensorSpec("last_hidden_state", (BATCH, SEQUENCE, config.d_model)),),
        tokens=config.vocab_size,
        words=config.relative_attention_max_distance + 12,  # beyond it distances count as one
    )


def clip_encoder(folder: str, network: Any) -> Part:
    """A CLIP text model: token ids to last_hidden_state, pooler_output (or text_embeds first), and all hidden states."""
    config = network.config
    projected = hasattr(network, "text_projection")
    width, longest = config.hidden_size, config.max_position_embeddings
    states = [f"hidden_states.{i}" for i in range(config.num_hidden_layers + 1)]

    def call(network: Any, feed: dict[str, Any]) -> Any:
        out = network(input_ids=feed["input_ids"], output_hidden_states=True)
        first = (out.text_embeds, out.last_hidden_state) if projected else (out.last_hidden_state, out.pooler_output)
        return (*first, *out.hidden_states)

    long = (BATCH, SEQUENCE, width)
    first = [("text_embeds", (BATCH, config.projection_dim)), ("last_hidden_state", long)]
    plain = [("last_hidden_state", long), ("pooler_output", (BATCH, width))]
    names = (first if projected else plain) + [(name, long) for name in states]
    return Part(
        folder,
        network,
        call,
        (TensorSpec("input_ids", (BATCH, SEQUENCE), "int64"),),
        tuple(TensorSpec(name, dims) for name, dims in names),
        longest={SEQUENCE: longest},
        tokens=config.vocab_size,
    )


def unet(network: Any, pooled: int, lora_input: str = "") -> Part:
    """A UNet2DConditionModel with the inputs its config asks for; the timestep is one number for the whole batch.

    `pooled` is the width of SDXL's pooled text; `lora_input` names a further scalar input, which the caller takes out."""
    config = network.config
    width = config.encoder_hid_dim or config.cross_attention_dim
    specs = [
        TensorSpec("sample", (BATCH, config.in_channels, "height", "width")),
        TensorSpec("timestep", ()),
        TensorSpec("encoder_hidden_states", (BATCH, SEQUENCE, width if isinstance(width, int) else max(width))),
    ]
    added = config.addition_embed_type == "text_time"
    if added:
        ids = (config.projection_class_embeddings_input_dim - pooled) // config.addition_time_embed_dim
        specs += [TensorSpec("text_embeds", (BATCH, pooled)), TensorSpec("time_ids", (BATCH, ids))]
    if config.time_cond_proj_dim:
        specs.append(TensorSpec("timestep_cond", (BATCH, config.time_cond_proj_dim)))
    if lora_input:
        specs.append(TensorSpec(lora_input, ()))

    def call(network: Any, feed: dict[str, Any]) -> Any:
        more: dict[str, Any] = {k: feed[k] for k in ("timestep_cond",) if k in feed}
        if added:
            more["added_cond_kwargs"] = {k: feed[k] for k in ("text_embeds", "time_ids")}
        return network(feed["sample"], feed["timestep"], feed["encoder_hidden_states"], **more).sample

    step = 2 ** (len(config.block_out_channels) - 1)
    output = TensorSpec(OUTPUTS["unet"], (BATCH, config.out_channels, "height", "width"))
    return Part("unet", network, call, tuple(specs), (output,), {"height": step, "width": step})


def transformer(network: Any) -> Part:
    """An SD3Transformer2DModel or FluxTransformer2DModel with the inputs that this library knows of its class, one time for
    every sample; Flux's latents are packed, a position of 2x2 latents a row."""
    config = network.config
    native = architecture(type(network).__name__).inputs(dict(config))
    inputs = tuple(replace(s, dims=tuple(d if isinstance(d, int) else layout_dim(d) for d in s.dims)) for s in native)
    channels, packed = config.out_channels or config.in_channels, PACKED in inputs[0].dims
    dims = (BATCH, PACKED, channels) if packed else (BATCH, channels, "height", "width")
    return Part(
        "transformer",
        network,
        lambda network, feed: raw_output(network(**feed)),
        inputs,
        (TensorSpec(OUTPUTS["transformer"], dims),),
        {} if packed else {"height": config.patch_size, "width": config.patch_size},
        native=native,
    )


def layout_dim(symbol: str) -> str:
    """A dim of this library's in the layout's words: "H/2" is "height / 2"."""
    word, _, divisor = symbol.partition("/")
    name = WORDS.get(word, word)
    return f"{name} / {divisor}" if divisor else name


def vae(network: Any) -> tuple[Part, Part]:
    """An AutoencoderKL's two halves: pixels to the mean and log variance of the latent, a latent to pixels."""
    config = network.config
    step = 2 ** (len(config.block_out_channels) - 1)
    small, large = ("latent_height", "latent_width"), ("sample_height", "sample_width")
    encoder = Part(
        "vae_encoder",
        network,
        lambda network, feed: network.encode(feed["sample"]).latent_dist.parameters,
        (TensorSpec("sample", (BATCH, config.in_channels, *large)),),
        (TensorSpec("latent_parameters", (BATCH, 2 * config.latent_channels, *(f"{d} / {step}" for d in large))),),
        dict.fromkeys(large, step),
    )
    decoder = Part(
        "vae_decoder",
        network,
        lambda network, feed: network.decode(feed["latent_sample"]).sample,
        (TensorSpec("latent_sample", (BATCH, config.latent_channels, *small)),),
        (TensorSpec("sample", (BATCH, config.out_channels, *(f"{d} * {step}" for d in small))),),
    )
    return encoder, decoder


def feed_of(part: Part, seed: int = 0, batch: int = 3) -> dict[str, Tensor]:
    """Seeded inputs; every symbolic dim has a length of its own, which moves with the seed."""
    import torch

    symbols = list(dict.fromkeys(d for s in part.inputs for d in s.dims if isinstance(d, str)))
    sizes = {d: (2 + (i + seed) % 3) * part.steps.get(d, 1) for i, d in enumerate(symbols)}
    words = part.words + seed
    sizes |= {BATCH: batch, SEQUENCE: min(words, part.longest.get(SEQUENCE, words))}
    if part.native:
        own = {symbol: sizes[name] for symbol, name in WORDS.items() if name in sizes and symbol != "B"}
        return example_inputs(part.native, batch, seed, **own)
    made = {}
    for spec in part.inputs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.dims)
        if spec.dtype == "int64":
            made[spec.name] = torch.from_numpy(rng.integers(0, part.tokens, shape, "pipeline", spec.name, seed))
        elif not shape:
            made[spec.name] = torch.tensor(501.0 if spec.name == "timestep" else 0.7)
        else:
            made[spec.name] = torch.from_numpy(rng.normal(shape, "pipeline", spec.name, seed))
    return made


def run(part: Part, feed: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What the network gives, in the order of the outputs."""
    import torch

    with torch.inference_mode():
        made = part.call(part.network, feed)
    return made if isinstance(made, tuple) else (made,)


def graph_of(part: Part, opset: int) -> ir.Model:
    """The graph, by torch's exporter, cleaned, with the layout's names and dims."""
    from optimize.onnx import graph as g
    from optimize.onnx.clean import simplify

    graph = _by_the_library(part, opset) if part.native else _by_torch(part, opset)
    g.narrow_doubles(graph)
    simplify(graph)
    g.anonymize(graph)
    relabel(graph, part.inputs, part.outputs)
    return graph


def _by_the_library(part: Part, opset: int) -> ir.Model:
    """The way that a denoiser of this library takes to ONNX, all of its dims symbolic."""
    from optimize.onnx.symbols import symbols
    from optimize.onnx.trace import Tracing, traced

    return traced(part.network, part.native, Tracing(opset, symbolic=tuple(sorted(symbols(part.native)))), {}).graph


def _by_torch(part: Part, opset: int) -> ir.Model:
    import torch

    from optimize.onnx import graph as g

    feed, names = feed_of(part), [s.name for s in part.inputs]
    with g.quiet("torch"), torch.no_grad():
        program = torch.onnx.export(
            _positional(part, names), tuple(feed.values()), dynamo=True, opset_version=opset, input_names=names,
            output_names=[o.name for o in part.outputs], dynamic_shapes=(_dynamic(part),), optimize=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    graph: ir.Model = program.model
    for value in list(graph.graph.initializers.values()):
        value.name = (value.name or "").removeprefix("network.")
    return graph


def relabel(graph: ir.Model, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Give inputs and outputs the names and dims of their specs, in place."""
    import onnx_ir as ir

    for values, specs in ((graph.graph.inputs, inputs), (graph.graph.outputs, outputs)):
        for value, spec in zip(values, specs, strict=True):
            value.name, value.shape = spec.name, ir.Shape(spec.dims)


def _dynamic(part: Part) -> tuple[dict[int, Any], ...]:
    from torch.export import Dim

    dims: dict[str, Any] = {BATCH: Dim(BATCH, min=1, max=63)}  # see onnx_trace: a branch of diffusers bounds the trace
    for name in {d for s in part.inputs for d in s.dims if isinstance(d, str)} - {BATCH}:
        step, longest = part.steps.get(name, 1), part.longest.get(name)
        base = Dim(f"_{name}" if step > 1 else name, min=1, **({"max": longest} if longest else {}))
        dims[name] = step * base if step > 1 else base
    return tuple({i: dims[d] for i, d in enumerate(s.dims) if isinstance(d, str)} for s in part.inputs)


def _positional(part: Part, names: list[str]) -> nn.Module:
    from torch import nn

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = part.network

        def forward(self, *tensors: Any) -> Any:
            return part.call(self.network, dict(zip(names, tensors)))

    return Positional().eval()


def distance(part: Part, session: Any, seed: int, batch: int) -> float:
    """The largest relative L2 difference of an output between the network and its exported file, on seeded inputs; infinite
    where either gives NaN."""
    import math

    import torch

    feed = feed_of(part, seed, batch)
    got = session.run([o.name for o in part.outputs], {k: v.numpy() for k, v in feed.items()})
    worst = 0.0
    for expected, value in zip(run(part, feed), got):
        assert prod(expected.shape) == value.size
        difference = torch.from_numpy(value).double() - expected.double()
        far = float(difference.norm() / expected.double().norm().clamp_min(1e-12))
        worst = max(worst, far if math.isfinite(far) else math.inf)  # max would pass a NaN over
    return worst


def record(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """What the manifest says of a graph's two ends."""
    return {
        "inputs": [{"name": s.name, "dims": list(s.dims), "dtype": s.dtype} for s in inputs],
        "outputs": [{"name": s.name, "dims": list(s.dims)} for s in outputs],
    }
