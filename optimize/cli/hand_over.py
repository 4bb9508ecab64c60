"""The command `optimize export`; its own file, since it has many options. Heavy imports happen inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimize.cli import names as cli_names
from optimize.cli.options import AsJson, Configs, console_of

if TYPE_CHECKING:
    from rich.console import Console

    from optimize.progress import Progress


Texts = list[str] | None
Given = Annotated[
    Path,
    typer.Argument(
        help="An artifact, e.g. exported/digits/final, a pipeline folder of diffusers, or a checkpoint in one file."
    ),
]
Targets = Annotated[
    str,
    typer.Option(help="Device classes, e.g. a100,rtx3090,v100, or here; or sm120.", autocompletion=cli_names.targets),
]
Format = Annotated[
    Texts,
    typer.Option(
        help="onnx, tensorrt or tensorrt_rtx; both TensorRTs by default. Repeat for more.",
        autocompletion=cli_names.exporters,
    ),
]
Onnx = Annotated[
    Texts,
    typer.Option(help="Field of the ONNX file, e.g. precision=fp16: see optimize schema onnx. Repeat for more."),
]
Batch = Annotated[
    str, typer.Option(help="Batch sizes of calls in use; engines take all between. Guidance doubles that of images.")
]
Size = Annotated[Texts, typer.Option(help="Sizes of another symbolic dimension, e.g. H=64,96. Repeat for more.")]
Exact = Annotated[bool, typer.Option(help="A further profile tuned for each combination of sizes.")]
Flag = Annotated[
    Texts,
    typer.Option(
        help="refit, refit_identical, refit_individual, strip_weights, stream_weights, version_compatible or "
        "sparse_weights. Repeat for more."
    ),
]
Compatible = Annotated[bool, typer.Option(help="TensorRT: one engine from SM 8.0 on.")]
Level = Annotated[int, typer.Option(min=0, max=5, help="How long TensorRT looks for faster kernels.")]
Tf32 = Annotated[bool, typer.Option(help="FP32 layers may round their inputs to TF32.")]
Workspace = Annotated[float, typer.Option(min=0.001, help="Scratch memory of a kernel on the GPU.")]
Lost = Annotated[str, typer.Option(help="error, or warn: keep an engine that computes wider than its graph asks.")]
Minutes = Annotated[float, typer.Option(min=0.001, max=10_000, help="A build may take at most.")]
MemoryGb = Annotated[float | None, typer.Option(min=0.001, help="A build may take at most.")]
Kits = Annotated[Path | None, typer.Option(help="Folder for build kits; kits/ beside the artifact.")]
Kit = Annotated[bool, typer.Option(help="A build kit where TensorRT must build elsewhere.")]
Zip = Annotated[bool, typer.Option(help="Kits as zip files.")]
Adopt = Annotated[
    list[Path] | None,
    typer.Option(help="A finished build kit, folder or zip: take its engine in, build nothing. Repeat for more."),
]
Engines = Annotated[Path, typer.Option(help="Folder whose store keeps engines.")]
Layout = Annotated[str | None, typer.Option(help="Of a pipeline: optimum, which optimum's pipelines load.")]
Out = Annotated[Path | None, typer.Option(help="Folder for what is no artifact yet: a new one, or an earlier export.")]
Denoiser = Annotated[
    Path | None,
    typer.Option("--denoiser", "--unet", help="Artifact to take the U-Net's or transformer's place in a pipeline."),
]
Loras = Annotated[Texts, typer.Option(help="LoRA of a pipeline, FILE or FILE:strength. Repeat for more.")]
LoraAs = Annotated[str, typer.Option(help="merged into the weights, or a switch: an input lora_scale.")]
NullClass = Annotated[
    int | None, typer.Option(min=0, help="Of a network: the label trained as no class; guidance needs it.")
]
Quiet = Annotated[bool, typer.Option(help="No progress bars.")]


def export(
    context: typer.Context,
    artifact: Given,
    target: Targets = "here",
    format: Format = None,
    onnx: Onnx = None,
    batch: Batch = "1,4,16",
    size: Size = None,
    exact: Exact = False,
    flag: Flag = None,
    hardware_compatible: Compatible = False,
    level: Level = 3,
    tf32: Tf32 = False,
    workspace_gb: Workspace = 4.0,
    precision_lost: Lost = "error",
    minutes: Minutes = 60.0,
    memory_gb: MemoryGb = None,
    kits: Kits = None,
    kit: Kit = True,
    zip: Zip = False,
    adopt: Adopt = None,
    exported: Engines = Path("exported"),
    layout: Layout = None,
    out: Out = None,
    denoiser: Denoiser = None,
    lora: Loras = None,
    lora_as: LoraAs = "merged",
    config: Configs = None,
    null_class: NullClass = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Files that other programs load: ONNX of a model or a pipeline, engines or build kits of an artifact.

    From a finished artifact, engines for device classes are built ahead of time where that is possible, else a build
    kit is written. A whole pipeline becomes ONNX files, each compared with its network; with --format, the denoiser of
    any diffusers folder becomes an artifact as it is.

    Example: optimize export exported/digits/final --target a100,rtx3090,v100

    Example: optimize export exported/digits/final --adopt exported/digits/kits/final-v100

    Example: optimize export my/flux --format onnx --onnx precision=fp16 --out exported/flux

    Example: optimize export sd15.safetensors --config my/sd15-configs --format onnx --out exported/sd15

    Example: optimize export stable-diffusion-v1-5 --layout optimum --out exported/sd15 --lora style.safetensors:0.8
    """
    from optimize.cli.bars import rich_progress
    from optimize.pipelines.whole import is_pipeline

    console = console_of(as_json)
    if adopt:
        _refuse_given(context, (*OF_ENGINES, *OF_PIPELINES), NOTHING_MADE)
        _adopt(artifact, adopt, console, as_json)
        return
    formats = tuple(format or (["onnx"] if onnx else []))
    whole = is_pipeline(artifact, bool(formats), layout=layout, out=out, denoiser=denoiser, lora=lora)
    if whole:
        _refuse_given(context, OF_ENGINES, FOR_A_NETWORK)
    place = (kits or (out or artifact).parent / "kits") if kit else None
    kernels = {"exact": exact, "flags": flag or [], "level": level, "tf32": tf32, "workspace_gb": workspace_gb}
    kept = {"hardware_compatible": hardware_compatible, "precision_lost": precision_lost}
    limits = {"minutes": minutes, "memory_gb": memory_gb}
    with rich_progress(console, quiet or as_json) as progress:
        if whole:
            made = {"denoiser": denoiser, "lora": lora or [], "lora_as": lora_as, "config": config}
            _pipeline(artifact, layout or "optimum", out, made, console, as_json, progress)
            return
        files: dict[str, Any] = {"formats": formats, "kits": place, "zipped": zip, "out": out, "config": config}
        files |= {"null_class": null_class}
        sizes = (batch, size or [])
        rows = _artifact(artifact, target, onnx or [], sizes, kernels | kept | limits, files, exported, progress)
    _tell(rows, console, as_json)


def _artifact(
    artifact: Path,
    target: str,
    onnx: list[str],
    sizes: tuple[str, list[str]],
    settings: dict[str, Any],
    files: dict[str, Any],
    exported: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Rows of what was made of an artifact, or of the denoiser of a folder."""
    from optimize.delivery.as_engines import ENGINES, Request, parse_settings
    from optimize.delivery.as_engines import export as export_all
    from optimize.delivery.as_onnx import parse_onnx
    from optimize.storage.cache import CACHE, Store

    asked = Request(
        artifact=artifact,
        targets=tuple(t.strip() for t in target.split(",") if t.strip()),
        onnx=parse_onnx(onnx),
        settings=parse_settings(*sizes, **settings),
        **files | {"formats": files["formats"] or ENGINES},
    )
    return export_all(asked, Store(exported / CACHE), progress)


def _tell(rows: list[dict[str, Any]], console: Console, as_json: bool) -> None:
    from optimize.delivery.as_engines import exit_code

    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        from optimize.report.terminal.engines import print_engines

        print_engines(rows, console)
    raise typer.Exit(exit_code(rows))


def _adopt(artifact: Path, kits: list[Path], console: Console, as_json: bool) -> None:
    from optimize.delivery.as_engines import adopt
    from optimize.report.terminal.engines import print_engines

    rows = adopt(artifact, kits)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    print_engines(rows, console)
    for row in rows:
        if isinstance(row["origin"]["parity"], str):
            console.print(f"{row['target']}: parity {row['origin']['parity']}", markup=False, soft_wrap=True)


OF_ENGINES = ("target", "batch", "size", "exact", "flag", "hardware_compatible", "level", "tf32", "workspace_gb", "precision_lost", "minutes", "memory_gb", "kits", "kit", "zip", "exported", "null_class")  # fmt: skip
OF_PIPELINES = ("format", "onnx", "layout", "out", "denoiser", "lora", "lora_as", "config")
NOTHING_MADE = "of what is made here, and --adopt makes nothing. Leave it out, or export apart."
FOR_A_NETWORK = "for a network alone, and this exports a whole pipeline. Leave it out, or give --format for the denoiser alone."  # fmt: skip


def _refuse_given(context: typer.Context, options: Sequence[str], reason: str) -> None:
    """Options beside a whole pipeline or --adopt, where they would do nothing, are one UserError."""
    given = [n for n in options if (s := context.get_parameter_source(n)) is not None and s.name == "COMMANDLINE"]
    if given:
        from optimize.errors import UserError

        names = ", ".join(f"--{n.replace('_', '-')}" for n in given)
        raise UserError(f"{names}: {reason}")


def _pipeline(
    folder: Path,
    layout: str,
    out: Path | None,
    made: dict[str, Any],
    console: Console,
    as_json: bool,
    progress: Progress,
) -> None:
    from optimize.errors import UserError
    from optimize.pipelines.whole import export_pipeline
    from optimize.report.terminal.written import print_exported

    if out is None:
        raise UserError("--out: a pipeline is exported to a folder of its own. Give e.g. --out exported/pipeline.")
    manifest = export_pipeline(folder, out, layout=layout, progress=progress, **made)
    if as_json:
        typer.echo(json.dumps(manifest, indent=1))
    else:
        print_exported(manifest, out, console)
