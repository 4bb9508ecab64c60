"""A diffusers pipeline folder as ONNX files in optimum's layout, whole or not at all, each file compared with its network.

PIPELINE/model_index.json says which networks there are. A LoRA is merged into their weights, or becomes an input of the
U-Net's graph; an artifact of this library can take the U-Net's place with the very file its proofs were made on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize import optimum_layout as graphs
from optimize.artifact import MANIFEST, commit, write_json
from optimize.configs import digest
from optimize.context import Progress, silent
from optimize.errors import ArtifactError, EnvironmentLacks, GateFailed, UserError, unknown
from optimize.lora import Lora, Switch, add_switch, lora_option, merge, read_lora
from optimize.network import TensorSpec
from optimize.weights import file_sha256, read_json

if TYPE_CHECKING:
    import onnx_ir as ir

INDEX = "model_index.json"
LAYOUTS = ("optimum",)
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
ENCODERS = ("text_encoder", "text_encoder_2")
COPIED = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor")  # read by their libraries as they are
SWITCH = "lora_scale"  # the input that a switched LoRA's strength comes in by
FARTHEST = 1e-3  # relative L2 between a network and its exported file
LORA_AS = ("merged", "switch")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline folder: its index, and which networks and other parts it has."""

    folder: Path
    index: dict[str, Any]

    def has(self, name: str) -> bool:
        """Whether the index names a part of a class (optional ones stand there as [null, null])."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None

    @property
    def encoders(self) -> list[str]:
        """The text encoders."""
        return [name for name in ENCODERS if self.has(name)]

    @property
    def left_out(self) -> list[str]:
        """Parts that the layout has no place for, e.g. a safety checker."""
        known = {*ENCODERS, *COPIED, "unet", "vae"}
        return [name for name in self.index if self.has(name) and name not in known]

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part."""
        config: dict[str, Any] = read_json(self.folder / part / "config.json")
        return config


def open_pipeline(folder: Path) -> Pipeline:
    """The pipeline in a folder. Raises UserError where there is none, or one of a class that has no layout (the nearest
    named), ArtifactError where a part that the index names is missing."""
    if not (folder / INDEX).is_file():
        reason = f"there is no {INDEX} in it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {reason}. Give a pipeline folder of diffusers, as save_pretrained writes it.")
    index = read_json(folder / INDEX)
    name = index.get("_class_name", "") if isinstance(index, dict) else ""
    if name not in PIPELINES:
        raise unknown(f"{folder / INDEX}: _class_name", str(name), PIPELINES)
    found = Pipeline(folder, index)
    wanted = {
        **dict.fromkeys((*found.encoders, "unet", "vae"), "config.json"),
        **{n: "" for n in COPIED if found.has(n)},
    }
    missing = [n for n, file in wanted.items() if not (folder / n / file).exists()]
    missing += [
        n for n in ("unet", "vae", "scheduler", "tokenizer", "text_encoder") if n not in wanted and _needs(found, n)
    ]
    if missing:
        raise ArtifactError(
            f"{folder}: {', '.join(f'{n}/' for n in missing)} is missing, and {name} cannot be used without. Copy the whole pipeline folder."
        )
    return found


def _needs(pipeline: Pipeline, part: str) -> bool:
    """Whether a part must be there: SDXL's refiner has only the second text encoder and tokenizer."""
    second = {"tokenizer": "tokenizer_2", "text_encoder": "text_encoder_2"}.get(part, "")
    return not (second and pipeline.has(second))


def is_pipeline(folder: Path, formats: bool = False, **options: Any) -> bool:
    """Whether `optimize export` is to write a whole pipeline: it was given the folder of one, or options that only one has,
    and no `formats`, which are of a network alone.

    Raises UserError for such options beside an artifact or beside formats."""
    named = [n for n, value in options.items() if value and not (formats and n == "out")]
    given = ", ".join(f"--{name}" for name in named)
    if formats and given:
        raise UserError(
            f"{given}: for a whole pipeline, and --format and --onnx export a network alone. Leave out either."
        )
    if (folder / MANIFEST).is_file() and not (folder / INDEX).is_file():
        if given:
            raise UserError(
                f"{given}: for a pipeline folder ({INDEX}), and {folder} is an artifact. Leave it out, or give the pipeline and --unet {folder}."
            )
        return False
    return not formats and (bool(given) or (folder / INDEX).is_file())


def export_pipeline(
    folder: Path,
    out: Path,
    *,
    layout: str = "optimum",
    unet: Path | None = None,
    lora: Sequence[str] = (),
    lora_as: str = "merged",
    opset: int = 18,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the pipeline in `folder` to `out` in a layout (optimum's) and return its manifest.

    `unet`: an artifact with an exported ONNX file, for the U-Net. `lora`: files, each with an optional `:strength`,
    "merged" into the weights or kept as a "switch", an input of the U-Net called lora_scale (0 off, 1 as merged).

    Raises UserError, ArtifactError and EnvironmentLacks before anything is written, GateFailed where an exported file
    is farther than 1e-3 (relative L2) from its network.
    """
    for option, given, allowed in (("--layout", layout, LAYOUTS), ("--lora-as", lora_as, LORA_AS)):
        if given not in allowed:
            raise unknown(option, given, allowed)
    pipeline = open_pipeline(folder)
    _check_out(out)
    _check_ort()
    loras = [read_lora(*lora_option(text), pipeline.config("unet")) for text in lora]
    _check_loras(pipeline, loras, lora_as, unet)

    def write(temporary: Path) -> dict[str, Any]:
        parts = _export_parts(pipeline, temporary, unet, loras, lora_as, opset, progress)
        _copy(pipeline, temporary)
        return _about(pipeline, loras, lora_as, opset, parts)

    return commit(out, write)


def _check_out(out: Path) -> None:
    """Only a new or empty folder, or an earlier export, is written to: whatever is there is replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    earlier = out / MANIFEST
    if not (earlier.is_file() and read_json(earlier).get("kind") == "pipeline"):
        raise UserError(f"--out: {out} exists and is no exported pipeline; it is left alone. Give a new folder.")


def _check_ort() -> None:
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise EnvironmentLacks(
            "export: ONNX Runtime compares every exported file with its network, and is not installed. pip install onnxruntime"
        ) from error


def _check_loras(pipeline: Pipeline, loras: list[Lora], lora_as: str, unet: Path | None) -> None:
    for lora in loras:
        others = sorted(set(lora.deltas) - set(pipeline.encoders) - {"unet"})
        if others:
            raise ArtifactError(f"{lora.path}: it is for {', '.join(others)}, which this pipeline does not have.")
        if unet is not None and "unet" in lora.deltas:
            raise UserError(
                f"{lora.path}: --unet {unet} is exported already, so no LoRA can be merged into it. Merge it before the passes, or leave --unet out."
            )
        beside = sorted(set(lora.deltas) - {"unet"})
        if lora_as == "switch" and beside:
            raise UserError(
                f"{lora.path}: it changes {', '.join(beside)} as well, and only the U-Net has an input for a switch. Use --lora-as merged."
            )


def _export_parts(
    pipeline: Pipeline, out: Path, unet: Path | None, loras: list[Lora], lora_as: str, opset: int, progress: Progress
) -> dict[str, Any]:
    """{folder: record} of every graph; one network is in memory at a time."""
    made: dict[str, Any] = {}
    with progress("export pipeline", len(pipeline.encoders) + 3) as advance:
        for name in pipeline.encoders:
            network = _network(pipeline, name)
            _merge(network, loras, name)
            made[name] = _export(graphs.text_encoder(name, network), out, pipeline.config(name), opset)
            advance(1, name)
        made["unet"] = _artifact(pipeline, unet, out) if unet else _unet(pipeline, out, loras, lora_as, opset)
        advance(1, "unet")
        for half in graphs.vae(_network(pipeline, "vae")):
            made[half.folder] = _export(half, out, _vae_config(pipeline), opset)
            advance(1, half.folder)
    return made


def _network(pipeline: Pipeline, name: str) -> Any:
    from optimize.models.components import with_weights

    return with_weights(pipeline.config(name), pipeline.folder / name)


def _merge(network: Any, loras: list[Lora], name: str) -> None:
    for lora in loras:
        merge(network, lora, name)


def _unet(pipeline: Pipeline, out: Path, loras: list[Lora], lora_as: str, opset: int) -> dict[str, Any]:
    network = _network(pipeline, "unet")
    part = unet_part(network, pooled_width(pipeline), loras if lora_as == "switch" else [])
    if lora_as == "merged":
        _merge(network, loras, "unet")
    return _export(part, out, pipeline.config("unet"), opset)


def unet_part(network: Any, pooled: int, switched: Sequence[Lora] = ()) -> graphs.Part:
    """The U-Net's graph; with switched LoRAs it takes their common strength as the input lora_scale."""
    if not switched:
        return graphs.unet(network, pooled)
    switch = Switch()
    for lora in switched:
        add_switch(network, lora, "unet", switch)
    part = graphs.unet(network, pooled, SWITCH)
    inner = part.call

    def call(network: Any, feed: dict[str, Any]) -> Any:
        switch.value = feed[SWITCH]
        return inner(network, {k: v for k, v in feed.items() if k != SWITCH})

    return graphs.Part(part.folder, network, call, part.inputs, part.outputs, part.steps, part.longest, part.tokens)


def pooled_width(pipeline: Pipeline) -> int:
    """Width of the pooled text SDXL's U-Net is given: the last text encoder's projection."""
    config = pipeline.config(pipeline.encoders[-1])
    return int(config.get("projection_dim") or config["hidden_size"])


def _vae_config(pipeline: Pipeline) -> dict[str, Any]:
    return {"scaling_factor": 0.18215, **pipeline.config("vae")}


def _export(part: graphs.Part, out: Path, config: dict[str, Any], opset: int) -> dict[str, Any]:
    """Write a part's folder, compare the file with the network, and return its record."""
    from optimize.onnx_file import save

    place = out / part.folder
    place.mkdir()
    save(graphs.graph_of(part, opset), place / "model.onnx")
    write_json(place / "config.json", config)
    far = max(graphs.distance(part, _session(place / "model.onnx"), seed, batch) for seed, batch in ((1, 1), (2, 2)))
    if not far <= FARTHEST:
        raise GateFailed(
            f"{part.folder}: the exported file is {far:.2g} (relative L2) from the network; at most {FARTHEST:g} is let through. Nothing was written."
        )
    return _record(part.inputs, part.outputs) | {"parity": {"relative_l2": far}}


def _record(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, Any]:
    return {
        "inputs": [{"name": s.name, "dims": list(s.dims), "dtype": s.dtype} for s in inputs],
        "outputs": [{"name": s.name, "dims": list(s.dims)} for s in outputs],
    }


def _session(path: Path) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _artifact(pipeline: Pipeline, folder: Path, out: Path) -> dict[str, Any]:
    """The artifact's own ONNX file with the layout's names; its config is the artifact's."""
    import onnx_ir as ir

    from optimize.onnx_file import save
    from optimize.runner import onnx_file
    from optimize.trust import artifact_digest, checked, read_manifest

    path = onnx_file(folder)
    structure = read_json(checked(folder, "structure.json"))
    _check_same(pipeline, folder, structure["config"])
    graph = ir.load(path)
    inputs, outputs = renamed(graph)
    place = out / "unet"
    place.mkdir()
    save(graph, place / "model.onnx")
    write_json(place / "config.json", {**structure["config"], "_class_name": structure["architecture"]})
    manifest = read_manifest(folder)
    about = {"id": manifest.get("id", ""), "digest": artifact_digest(manifest), "parity": manifest.get("parity", {})}
    return _record(inputs, outputs) | {"artifact": about}


def _check_same(pipeline: Pipeline, folder: Path, config: dict[str, Any]) -> None:
    """The artifact is fed what the pipeline's own U-Net is fed."""
    own = pipeline.config("unet")
    keys = ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type", "time_cond_proj_dim")
    for key in keys:
        if config.get(key) != own.get(key):
            raise ArtifactError(
                f"--unet {folder}: {key} is {config.get(key)!r}, the pipeline's is {own.get(key)!r}. Give an artifact made from this pipeline's U-Net."
            )


def renamed(graph: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Give an artifact's U-Net graph the layout's names and its scalar timestep, in place; returns inputs and outputs."""
    import onnx_ir as ir

    for value in (*graph.graph.inputs, *graph.graph.outputs):
        value.name = (value.name or "").removeprefix("added_cond_kwargs.")
        value.shape = ir.Shape([d if isinstance(d, int) else _dim(str(d.value)) for d in value.shape or ()])
    _scalar_timestep(graph)
    return tuple(_spec(v) for v in graph.graph.inputs), tuple(_spec(v) for v in graph.graph.outputs)


def _dim(symbol: str) -> str:
    """A dim of this library's in the layout's words: "H/2" is "height / 2"."""
    word, _, divisor = symbol.partition("/")
    name = {"B": graphs.BATCH, "H": "height", "W": "width", "L": graphs.SEQUENCE}.get(word, word)
    return f"{name} / {divisor}" if divisor else name


def _spec(value: ir.Value) -> TensorSpec:
    dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape or ())
    return TensorSpec(value.name or "", dims, "int64" if str(value.dtype).lower().endswith("int64") else "float32")


def _scalar_timestep(graph: ir.Model) -> None:
    """timestep [] -> Expand to the batch of `sample`, where the graph wants one of each sample."""
    import numpy as np
    import onnx_ir as ir

    from optimize.onnx_graph import initializer

    inputs = {v.name: v for v in graph.graph.inputs}
    wanted = inputs["timestep"]
    if wanted.shape is None or not len(wanted.shape):
        return
    uses = list(wanted.uses())
    wanted.shape = ir.Shape(())
    zero = initializer(graph, "timestep.first", np.array([0], np.int64))
    shape = ir.node("Shape", [inputs["sample"]], name="Shape.timestep")
    batch = ir.node("Gather", [shape.outputs[0], zero], name="Gather.timestep")
    spread = ir.node("Expand", [wanted, batch.outputs[0]], name="Expand.timestep")
    for node, name in ((shape, "timestep.shape"), (batch, "timestep.batch"), (spread, "timestep.spread")):
        node.outputs[0].name = name
    first = graph.graph[0]
    for node in (shape, batch, spread):
        graph.graph.insert_before(first, node)
    for node, index in uses:
        node.replace_input_with(index, spread.outputs[0])


def _copy(pipeline: Pipeline, out: Path) -> None:
    """Index, scheduler and tokenizers as they are."""
    shutil.copy2(pipeline.folder / INDEX, out / INDEX)
    for name in COPIED:
        if pipeline.has(name):
            shutil.copytree(pipeline.folder / name, out / name)


def _about(pipeline: Pipeline, loras: list[Lora], lora_as: str, opset: int, parts: dict[str, Any]) -> dict[str, Any]:
    """The manifest's fields."""
    read = [p for name in ("unet", "vae", *pipeline.encoders) for p in sorted((pipeline.folder / name).glob("*"))]
    files = {p.relative_to(pipeline.folder).as_posix(): file_sha256(p) for p in read if p.is_file()}
    used = [
        {"sha256": file_sha256(x.path), "strength": x.strength, "as": lora_as, "layers": {k: len(v) for k, v in x.deltas.items()}}
        for x in loras
    ]  # fmt: skip
    about = {
        "kind": "pipeline",
        "layout": "optimum",
        "class": pipeline.index["_class_name"],
        "source": {"kind": "diffusers", "files": files},
        "opset": opset,
        "lora": used,
        "left_out": pipeline.left_out,
        "parts": deepcopy(parts),
    }
    return {"id": digest(about), **about}
