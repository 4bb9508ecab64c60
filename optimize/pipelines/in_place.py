"""An artifact of this library in the denoiser's place of a pipeline: the very file its proofs were made on, with the names
of optimum's layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.architectures.components import class_name
from optimize.diffusion import parameterization
from optimize.diffusion.network import TensorSpec
from optimize.errors import ArtifactError
from optimize.onnx.vetted import onnx_file
from optimize.pipelines.folder import Pipeline
from optimize.pipelines.layout import OUTPUTS, layout_dim, record
from optimize.storage.commit import write_json
from optimize.storage.trust import artifact_digest, checked, read_manifest
from optimize.storage.weights import read_json

if TYPE_CHECKING:
    import onnx_ir as ir


PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}  # diffusers' names
SAME = (  # keys of a config that decide what a denoiser is fed and gives
    "in_channels",
    "out_channels",
    "cross_attention_dim",
    "addition_embed_type",
    "time_cond_proj_dim",
    "joint_attention_dim",
    "pooled_projection_dim",
    "guidance_embeds",
)


def check_artifact(pipeline: Pipeline, folder: Path) -> None:
    """Raises ArtifactError where the artifact has no exported ONNX file, or is fed something else than the pipeline's own
    denoiser."""
    onnx_file(folder)
    own, structure = pipeline.config(pipeline.denoiser), read_json(checked(folder, "structure.json"))
    config, found = structure["config"], {"class": (structure["architecture"], class_name(own))}
    for key, (given, wanted) in {**found, **{k: (config.get(k), own.get(k)) for k in SAME}}.items():
        if given != wanted:
            raise ArtifactError(
                f"--denoiser {folder}: {key} is {given!r}, the pipeline's is {wanted!r}. Give an artifact made from this pipeline's {pipeline.denoiser}."
            )


def follow_head(pipeline: Pipeline, folder: Path, out: Path) -> None:
    """Let the scheduler copied to `out` read the output as the artifact means it, where a pass changed that (epsilon to v).

    Raises ArtifactError for a meaning that the scheduler has no name for."""
    path = out / "scheduler" / "scheduler_config.json"
    head = head_of(folder)
    if not head or not path.is_file():
        return
    config = read_json(path)
    own = parameterization.from_diffusers(config).prediction
    if head == own:
        return
    if head not in PREDICTION_TYPES or own not in PREDICTION_TYPES:
        raise ArtifactError(
            f"--denoiser {folder}: its output means {head}, and the pipeline's scheduler reads {own}. Give an artifact made "
            f"from this pipeline's {pipeline.denoiser}."
        )
    write_json(path, {**config, "prediction_type": PREDICTION_TYPES[head]})


def head_of(folder: Path) -> str:
    """What the output of an artifact's network means (epsilon, v, sample, flow); empty where it says nothing of sampling."""
    if "sampler.json" not in read_manifest(folder)["files"]:
        return ""
    return str((read_json(checked(folder, "sampler.json")).get("parameterization") or {}).get("prediction", ""))


def place_artifact(folder: Path, place: Path) -> dict[str, Any]:
    """Write the artifact's own ONNX file and its config to `place`, a folder named as the layout's denoiser; the record."""
    import onnx_ir as ir

    from optimize.onnx.file import save

    graph, structure = ir.load(onnx_file(folder)), read_json(checked(folder, "structure.json"))
    inputs, outputs = renamed(graph, place.name)
    place.mkdir()
    save(graph, place / "model.onnx")
    write_json(place / "config.json", {**structure["config"], "_class_name": structure["architecture"]})
    manifest = read_manifest(folder)
    about = {"id": manifest.get("id", ""), "digest": artifact_digest(manifest), "parity": manifest.get("parity", {})}
    about["head"] = head_of(folder)
    return record(inputs, outputs) | {"artifact": about}


def renamed(graph: ir.Model, folder: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Give an artifact's graph the names of the layout's unet or transformer, in place; returns inputs and outputs."""
    import onnx_ir as ir

    for value in (*graph.graph.inputs, *graph.graph.outputs):
        value.name = (value.name or "").removeprefix("added_cond_kwargs.")
        value.shape = ir.Shape([d if isinstance(d, int) else layout_dim(str(d.value)) for d in value.shape or ()])
    graph.graph.outputs[0].name = OUTPUTS[folder]
    if folder == "unet":
        _scalar_timestep(graph)
    return tuple(_spec(v) for v in graph.graph.inputs), tuple(_spec(v) for v in graph.graph.outputs)


def _spec(value: ir.Value) -> TensorSpec:
    dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape or ())
    return TensorSpec(value.name or "", dims, "int64" if str(value.dtype).lower().endswith("int64") else "float32")


def _scalar_timestep(graph: ir.Model) -> None:
    """timestep [] -> Expand to the batch of `sample`, where the graph wants one of each sample."""
    import numpy as np
    import onnx_ir as ir

    from optimize.onnx.graph import initializer

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
