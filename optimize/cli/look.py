"""The commands that measure and foretell: plan, bench, compare, inspect. Heavy imports happen inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from optimize.cli import names
from optimize.cli.options import AsJson, Configs, Exported, PriceTable, console_of


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, a checkpoint in one file, an artifact folder, or a recipe (file or name).",
            autocompletion=names.recipes,
        ),
    ],
    target: Annotated[
        str,
        typer.Option(help="Device classes, e.g. a100,v100,rtx3090, cpu or here.", autocompletion=names.targets),
    ] = "here",
    latency_ms: Annotated[float | None, typer.Option(help="Budget: milliseconds of a batch of images.")] = None,
    size_mb: Annotated[float | None, typer.Option(help="Budget: megabytes of the network's file.")] = None,
    max_quality_loss: Annotated[float | None, typer.Option(help="Budget: rise of FID, 0.3 is 1.3 times.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images drawn at once.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Sampling steps of today, instead of the recipe's.")
    ] = None,
    cfg: Annotated[float | None, typer.Option(min=0, help="Guidance weight of today; 0 is none.")] = None,
    like: Annotated[
        str | None,
        typer.Option(help="Recipe whose data and judges a proposal takes over.", autocompletion=names.recipes),
    ] = None,
    measurements: Annotated[Path | None, typer.Option(help="measurements.jsonl to calibrate by.")] = None,
    prices: PriceTable = None,
    out: Annotated[Path | None, typer.Option(help="File for the proposed recipe; one for each target.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that --out names.")] = False,
    exported: Exported = Path("exported"),
    config: Configs = None,
    as_json: AsJson = False,
) -> None:
    """What works on a device, what it will take, and a recipe for a budget: predicted, before any work.

    Example: optimize plan digits --target a100,v100,rtx3090 --latency-ms 5 --out fast.yaml
    """
    from optimize.planning.outlook import plan_for, write_recipes

    found = plan_for(
        model,
        [t.strip() for t in target.split(",") if t.strip()],
        latency_ms=latency_ms,
        size_mb=size_mb,
        max_quality_loss=max_quality_loss,
        batch=batch,
        steps=steps,
        guidance=cfg,
        like=like,
        measurements=measurements,
        prices=prices,
        exported=exported,
        beside=out.parent if out else Path(),
        config=config,
    )
    written = write_recipes(found, out, overwrite) if out else []
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from rich.markup import escape

    from optimize.report.terminal.outlook import print_plan

    console = console_of()
    print_plan(found, console)
    for path in written:
        console.print(f"Recipe: [bold]{escape(str(path))}[/bold]", soft_wrap=True)


def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact folders, e.g. exported/digits/final.")],
    runner: Annotated[
        list[str] | None,
        typer.Option(
            help="name, name:precision or name:precision@device, e.g. torch:fp16@cuda,openvino.",
            autocompletion=names.runners,
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, e.g. 1,16.")] = "1",
    io: Annotated[str, typer.Option(help="host, device, or both: where inputs and outputs are.")] = "host",
    cuda_graphs: Annotated[str, typer.Option(help="off, on, or both.")] = "off",
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Turns of every row; slow images sit some out.")] = 20,
    seconds: Annotated[
        float, typer.Option(min=0.001, max=3600, help="Timed work in a turn, of calls and of images.")
    ] = 0.1,
    warm_up: Annotated[float, typer.Option(min=0, max=3600, help="Seconds of warm-up at most, for each kind.")] = 0.6,
    sampler: Annotated[str | None, typer.Option(help="Solver instead of the artifact's own.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Steps instead of the artifact's own.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="CPU threads of a row; all cores by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the order of turns.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Measurements file (.jsonl) to append the rows to.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
) -> None:
    """Time artifacts on runners, interleaved: latency, memory, energy, speed-up against the first row.

    Example: optimize bench exported/digits/baseline exported/digits/final --runner openvino --batch 1,16
    """
    from optimize.cli.bars import rich_progress
    from optimize.measure.bench import FEWEST, IO, append, check_out, exit_code, numbers, variants

    policies = {"off": (False,), "on": (True,), "both": (False, True)}
    if cuda_graphs not in policies:
        from optimize.errors import unknown

        raise unknown("--cuda-graphs", cuda_graphs, policies)
    asked = variants(
        artifacts,
        [r.strip() for given in runner for r in given.split(",")] if runner else ["torch", "onnxruntime", "openvino"],
        numbers(batch, "--batch"),
        io=IO if io == "both" else (io,),
        cuda_graphs=policies[cuda_graphs],
        solver=sampler,
        steps=steps,
        threads=threads,
    )
    if out:
        check_out(out)
    from optimize.measure.turns import bench as time_all

    console = console_of(stderr=as_json)
    with rich_progress(console, quiet or as_json) as progress:
        rows = time_all(
            asked, rounds=rounds, turn_s=seconds, warm_s=warm_up, seed=seed, fewest=FEWEST, progress=progress
        )
    if out:
        append(out, rows)
    if as_json:
        typer.echo(json.dumps([m.to_json() for m in rows], indent=1))
    else:
        from optimize.report.terminal.bench import print_bench

        print_bench(rows, console)
    raise typer.Exit(exit_code(rows))


def compare(
    a: Annotated[Path, typer.Argument(help="Before: a run's folder, a measurements file, or a summary.json.")],
    b: Annotated[Path, typer.Argument(help="After: likewise.")],
    as_json: AsJson = False,
) -> None:
    """What changed between two reports, and whether it is more than noise.

    Example: optimize compare exported/old exported/digits
    """
    from optimize.runs.comparison import compare as compare_reports

    found = compare_reports(a, b)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        from optimize.report.terminal.comparison import print_comparison

        print_comparison(found, console_of())


def inspect(
    model: Annotated[
        Path,
        typer.Argument(
            help="An artifact, a diffusers pipeline or one of its parts, a checkpoint in one file, or a config.json."
        ),
    ],
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images at once.")] = 1,
    target: Annotated[
        str,
        typer.Option(help="Device class the roofline speaks of; here is this machine.", autocompletion=names.targets),
    ] = "here",
    precision: Annotated[
        str | None, typer.Option(help="Format the roofline computes in; fp16 on a GPU, else fp32.")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, max=100, help="Names of a module's path that layers are summed by.")] = 2,
    measure: Annotated[bool, typer.Option(help="Time the network in torch eager, where it has weights.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for the report as JSON and a picture.")] = None,
    config: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Where a model's parameters, MACs, bytes and time go, layer by layer; no run is needed.

    Example: optimize inspect exported/digits/final --depth 3 --out inspected
    """
    from rich.markup import escape

    from optimize.inspect.breakdown import cache_folder
    from optimize.inspect.breakdown import inspect as look
    from optimize.report.terminal.breakdown import WRITTEN, check_out, print_breakdown, write_out

    if out is not None:
        check_out(out)
    console = console_of(stderr=as_json)
    with console.status("Looking at the layers"):
        report = look(
            model,
            batch=batch,
            target=target,
            format=precision,
            depth=depth,
            measure=measure,
            cache=cache_folder(),
            config=config,
        )
    if out is not None:  # first, since whoever reads the table may stop early
        write_out(report, out)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        print_breakdown(report, console)
    if out is not None:
        console.print(f"Picture: [bold]{escape(str(out / WRITTEN[0]))}[/bold]", soft_wrap=True)
