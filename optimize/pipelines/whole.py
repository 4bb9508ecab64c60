"""A diffusers pipeline folder as ONNX files in optimum's layout, whole or not at all, each file compared with its network.

PIPELINE/model_index.json says which networks there are. A LoRA is merged into their weights, or becomes an input of the
U-Net's graph; an artifact of this library can take the denoiser's place with the very file its proofs were made on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from optimize.architectures.adapters.foreign import short, some
from optimize.architectures.lora import Lora, Switch, add_switch, lora_option, merge, read_lora
from optimize.configs import digest
from optimize.delivery.as_onnx import check_ort, check_out
from optimize.errors import ArtifactError, GateFailed, UserError, unknown
from optimize.pipelines import layout as graphs
from optimize.pipelines.folder import COPIED, INDEX, Pipeline, pipeline_of
from optimize.pipelines.in_place import check_artifact, follow_head, place_artifact
from optimize.progress import Progress, silent
from optimize.storage.commit import commit, write_json
from optimize.storage.trust import MANIFEST
from optimize.storage.weights import file_sha256

LAYOUTS = ("optimum",)
SWITCH = "lora_scale"  # the input that a switched LoRA's strength comes in by
LORA_AS = ("merged", "switch")
FARTHEST = 1e-3  # relative L2 between a network and its exported file


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
                f"{given}: for a pipeline folder ({INDEX}), and {folder} is an artifact. Leave it out, or give the pipeline and --denoiser {folder}."
            )
        return False
    return not formats and (bool(given) or (folder / INDEX).is_file())


def export_pipeline(
    folder: Path,
    out: Path,
    *,
    layout: str = "optimum",
    denoiser: Path | None = None,
    lora: Sequence[str] = (),
    lora_as: str = "merged",
    opset: int = 18,
    config: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the pipeline in `folder` to `out` in a layout (optimum's) and return its manifest. `folder` may be a checkpoint
    in one file, with the folder `config` of its pipeline's configs.

    `denoiser`: an artifact with an exported ONNX file, for the U-Net or transformer. `lora`: files, each with an optional
    `:strength`, "merged" into the weights or kept as a "switch", an input of a U-Net called lora_scale (0 off, 1 as
    merged).

    Raises UserError, ArtifactError and EnvironmentLacks before anything is written, GateFailed where an exported file
    is farther than 1e-3 (relative L2) from its network.
    """
    for option, given, allowed in (("--layout", layout, LAYOUTS), ("--lora-as", lora_as, LORA_AS)):
        if given not in allowed:
            raise unknown(option, given, allowed)
    check_out(out, "pipeline")
    check_ort()
    pipeline = pipeline_of(folder, config)
    encoders = {name: pipeline.config(name) for name in pipeline.encoders} if lora else {}
    loras = [read_lora(*lora_option(text), pipeline.config(pipeline.denoiser), encoders) for text in lora]
    _check_loras(pipeline, loras, lora_as, denoiser)
    if denoiser:
        check_artifact(pipeline, denoiser)
    _check_weights(pipeline, denoiser)

    def write(temporary: Path) -> dict[str, Any]:
        parts = _export_parts(pipeline, temporary, denoiser, loras, lora_as, opset, progress)
        _copy(pipeline, temporary)
        if denoiser:
            follow_head(pipeline, denoiser, temporary)
        return _about(pipeline, loras, lora_as, opset, parts)

    return commit(out, write)


def _check_weights(pipeline: Pipeline, artifact: Path | None) -> None:
    """Compare the headers of every network's weights with it, before any of them is exported."""
    from optimize.architectures.components import skeleton

    for name in pipeline.networks:
        if artifact is None or name != pipeline.denoiser:
            skeleton(pipeline.config(name), pipeline.weights(name))


def _check_loras(pipeline: Pipeline, loras: list[Lora], lora_as: str, artifact: Path | None) -> None:
    if loras and lora_as == "switch" and pipeline.denoiser != "unet":
        raise UserError(
            f"--lora-as switch: {pipeline.name} has a {pipeline.denoiser}, and only a U-Net has an input for a switch. Use --lora-as merged."
        )
    for lora in loras:
        others = sorted(set(lora.deltas) - set(pipeline.networks))
        if others:
            names = some([short(name) for part in others for name in lora.names[part].values()])
            raise ArtifactError(
                f"{lora.path}: it is for {', '.join(others)}, which this pipeline does not have: {names}."
            )
        if artifact is not None and pipeline.denoiser in lora.deltas:
            raise UserError(
                f"{lora.path}: --denoiser {artifact} is exported already, so no LoRA can be merged into it. Merge it before the passes, or leave --denoiser out."
            )
        beside = sorted(set(lora.deltas) - {pipeline.denoiser})
        if lora_as == "switch" and beside:
            raise UserError(
                f"{lora.path}: it changes {', '.join(beside)} as well, and only the U-Net has an input for a switch. Use --lora-as merged."
            )


def _export_parts(
    pipeline: Pipeline,
    out: Path,
    artifact: Path | None,
    loras: list[Lora],
    lora_as: str,
    opset: int,
    progress: Progress,
) -> dict[str, Any]:
    """{folder: record} of every graph; one network is in memory at a time."""
    made: dict[str, Any] = {}
    with progress("export pipeline", len(pipeline.encoders) + 3) as advance:
        for name in pipeline.encoders:
            network = _network(pipeline, name)
            _merge(network, loras, name)
            made[name] = _export(graphs.text_encoder(name, network), out, pipeline.config(name), opset)
            advance(1, name)
        if artifact:
            made[pipeline.denoiser] = place_artifact(artifact, out / pipeline.denoiser)
        else:
            made[pipeline.denoiser] = _denoiser(pipeline, out, loras, lora_as, opset)
        advance(1, pipeline.denoiser)
        for half in graphs.vae(_network(pipeline, "vae")):
            made[half.folder] = _export(half, out, _vae_config(pipeline), opset)
            advance(1, half.folder)
    return made


def _network(pipeline: Pipeline, name: str) -> Any:
    from optimize.architectures.components import with_weights
    from optimize.architectures.finite import require_finite_weights

    network = with_weights(pipeline.config(name), pipeline.weights(name))
    require_finite_weights(network, f"{pipeline.folder / name}")
    return network


def _merge(network: Any, loras: list[Lora], name: str) -> None:
    for lora in loras:
        merge(network, lora, name)


def _denoiser(pipeline: Pipeline, out: Path, loras: list[Lora], lora_as: str, opset: int) -> dict[str, Any]:
    network = _network(pipeline, pipeline.denoiser)
    if lora_as == "merged":
        _merge(network, loras, pipeline.denoiser)
    if pipeline.denoiser == "transformer":
        part = graphs.transformer(network)
    else:
        part = unet_part(network, pooled_width(pipeline), loras if lora_as == "switch" else [])
    return _export(part, out, pipeline.config(pipeline.denoiser), opset)


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
    from optimize.onnx.file import save

    place = out / part.folder
    place.mkdir()
    save(graphs.graph_of(part, opset), place / "model.onnx")
    write_json(place / "config.json", config)
    far = max(graphs.distance(part, _session(place / "model.onnx"), seed, batch) for seed, batch in ((1, 1), (2, 2)))
    if not far <= FARTHEST:
        raise GateFailed(
            f"{part.folder}: the exported file is {far:.2g} (relative L2) from the network; at most {FARTHEST:g} is let through. Nothing was written."
        )
    return graphs.record(part.inputs, part.outputs) | {"parity": {"relative_l2": far}}


def _session(path: Path) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _copy(pipeline: Pipeline, out: Path) -> None:
    """Index, scheduler and tokenizers as they are."""
    shutil.copy2(pipeline.folder / INDEX, out / INDEX)
    for name in COPIED:
        if pipeline.has(name):
            shutil.copytree(pipeline.folder / name, out / name)


def _about(pipeline: Pipeline, loras: list[Lora], lora_as: str, opset: int, parts: dict[str, Any]) -> dict[str, Any]:
    """The manifest's fields; of the source, the files that were read."""
    taken = [name for name, part in parts.items() if "artifact" in part]  # whose weights were not
    files = {
        (p.name if p == pipeline.checkpoint else p.relative_to(pipeline.folder).as_posix()): file_sha256(p)
        for p in sorted({p for name in pipeline.networks for p in pipeline.files(name, name not in taken)})
    }
    used = [
        {"sha256": file_sha256(x.path), "strength": x.strength, "as": lora_as, "layers": {k: len(v) for k, v in x.deltas.items()}}
        for x in loras
    ]  # fmt: skip
    about = {
        "kind": "pipeline",
        "layout": "optimum",
        "class": pipeline.name,
        "source": {"kind": "diffusers", "files": files},
        "opset": opset,
        "lora": used,
        "left_out": pipeline.left_out,
        "parts": deepcopy(parts),
    }
    return {"id": digest(about), **about}
