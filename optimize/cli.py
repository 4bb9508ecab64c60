"""The command line. Heavy imports happen inside commands, so `--help` answers at once.

Exit codes: 0 done, 1 a gate failed, 2 the user's input is wrong, 3 the environment lacks something.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimize.cli_export import export

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    rich_markup_mode="markdown",
    name="optimize",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Shrink trained diffusion models, prove what it cost, and export what a server loads.\n\nExample: optimize run digits",
)
Exported = Annotated[Path, typer.Option(help="Folder that results go to.")]
PriceTable = Annotated[Path | None, typer.Option("--prices", help="Price table instead of the shipped one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
app.command()(export)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    exported: Exported = Path("exported"),
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
    prices: PriceTable = None,
) -> None:
    """Run a recipe: passes, exports, parity, benchmark, quality, gates, report.

    Example: optimize run digits --exported exported
    """
    from optimize.recipe import load

    loaded = load(recipe)
    loaded = loaded.model_copy(update={"prices": prices}) if prices else loaded
    from optimize.pipeline import run as run_recipe
    from optimize.plan import will_not_pay
    from optimize.progress import rich_progress

    console = _console(stderr=as_json)
    for line in will_not_pay(loaded):
        console.print(f"~ {line}", style="yellow", markup=False, highlight=False)
    _log_to(exported / loaded.name / "run.log")
    with rich_progress(console, quiet or as_json) as progress:
        summary = run_recipe(loaded, exported, progress)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
    else:
        _show(summary, exported / loaded.name, console)
    raise typer.Exit(0 if summary["gates_passed"] else 1)


def _show(summary: dict[str, Any], folder: Path, console: Console) -> None:
    from optimize.report.console import print_table

    print_table(summary, console)
    console.print(f"Report: [bold]{folder / 'report.html'}[/bold]", soft_wrap=True)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A model folder, an artifact folder, or a recipe (file or name).")],
    target: Annotated[str, typer.Option(help="Device classes, e.g. a100,v100,rtx3090, cpu or here.")] = "here",
    latency_ms: Annotated[float | None, typer.Option(help="Budget: milliseconds of a batch of images.")] = None,
    size_mb: Annotated[float | None, typer.Option(help="Budget: megabytes of the network's file.")] = None,
    max_quality_loss: Annotated[float | None, typer.Option(help="Budget: rise of FID, 0.3 is 1.3 times.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images drawn at once.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps of today, instead of the recipe's.")] = None,
    cfg: Annotated[float | None, typer.Option(min=0, help="Guidance weight of today; 0 is none.")] = None,
    like: Annotated[str | None, typer.Option(help="Recipe whose data and judges a proposal takes over.")] = None,
    measurements: Annotated[Path | None, typer.Option(help="measurements.jsonl to calibrate by.")] = None,
    prices: PriceTable = None,
    out: Annotated[Path | None, typer.Option(help="File for the proposed recipe; one for each target.")] = None,
    exported: Exported = Path("exported"),
    as_json: AsJson = False,
) -> None:
    """What works on a device, what it will take, and a recipe for a budget: predicted, before any work.

    Example: optimize plan digits --target a100,v100,rtx3090 --latency-ms 5 --out fast.yaml
    """
    from optimize.planning import plan_for, write_recipes

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
    )
    written = write_recipes(found, out) if out else []
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from optimize.report.planned import print_plan

    console = _console()
    print_plan(found, console)
    for path in written:
        console.print(f"Recipe: [bold]{path}[/bold]", soft_wrap=True)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List recipes, passes, exporters, runners and sources.

    Example: optimize list --json
    """
    from optimize import registry
    from optimize.recipe import builtin

    kinds = {
        "passes": registry.PASSES,
        "exporters": registry.EXPORTERS,
        "runners": registry.RUNNERS,
        "sources": registry.SOURCES,
    }
    found = {"recipes": builtin(), **{k: v.names() for k, v in kinds.items()}}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for kind, names in found.items():
        typer.echo(f"{kind:<10} {', '.join(names)}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A finished run's folder, e.g. exported/digits.")],
    as_json: AsJson = False,
) -> None:
    """Print a finished run's table again and rewrite its report.md and report.html.

    Example: optimize report exported/digits
    """
    from optimize.pipeline import write_reports
    from optimize.weights import read_json

    summary = read_json(folder / "summary.json")
    write_reports(summary, folder)
    if as_json:
        files = {kind: str(folder / f"report.{kind}") for kind in ("html", "md")}
        typer.echo(json.dumps(summary | {"files": files}, indent=1))
    else:
        _show(summary, folder, _console())


@app.command()
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifact folders, e.g. exported/digits/final.")],
    runner: Annotated[
        list[str] | None,
        typer.Option(help="name, name:precision or name:precision@device, e.g. torch:fp16@cuda,openvino."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, e.g. 1,16.")] = "1",
    io: Annotated[str, typer.Option(help="host, device, or both: where inputs and outputs are.")] = "host",
    cuda_graphs: Annotated[str, typer.Option(help="off, on, or both.")] = "off",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every row; slow images sit some out.")] = 20,
    seconds: Annotated[float, typer.Option(min=0.001, help="Timed work in a turn, of calls and of images.")] = 0.1,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of warm-up at most, for each kind.")] = 0.6,
    sampler: Annotated[str | None, typer.Option(help="Solver instead of the artifact's own.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps instead of the artifact's own.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a row; all cores by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of turns.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Measurements file (.jsonl) to append the rows to.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
) -> None:
    """Time artifacts on runners, interleaved: latency, memory, energy, speed-up against the first row.

    Example: optimize bench exported/digits/baseline exported/digits/final --runner openvino --batch 1,16
    """
    from optimize import benchmark
    from optimize.progress import rich_progress

    policies = {"off": (False,), "on": (True,), "both": (False, True)}
    if cuda_graphs not in policies:
        from optimize.errors import unknown

        raise unknown("--cuda-graphs", cuda_graphs, policies)
    asked = benchmark.variants(
        artifacts,
        [r.strip() for given in runner for r in given.split(",")] if runner else ["torch", "onnxruntime", "openvino"],
        benchmark.numbers(batch, "--batch"),
        io=benchmark.IO if io == "both" else (io,),
        cuda_graphs=policies[cuda_graphs],
        solver=sampler,
        steps=steps,
        threads=threads,
    )
    if out:
        benchmark.check_out(out)
    from optimize.measure.turns import bench as time_all

    console = _console(stderr=as_json)
    with rich_progress(console, quiet or as_json) as progress:
        rows = time_all(
            asked, rounds=rounds, turn_s=seconds, warm_s=warm_up, seed=seed, fewest=benchmark.FEWEST, progress=progress
        )
    if out:
        benchmark.append(out, rows)
    if as_json:
        typer.echo(json.dumps([m.to_json() for m in rows], indent=1))
    else:
        from optimize.report.bench import print_bench

        print_bench(rows, console)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Before: a run's folder, a measurements file, or a summary.json.")],
    b: Annotated[Path, typer.Argument(help="After: likewise.")],
    as_json: AsJson = False,
) -> None:
    """What changed between two reports, and whether it is more than noise.

    Example: optimize compare exported/old exported/digits
    """
    from optimize.comparison import compare as compare_reports

    found = compare_reports(a, b)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        from optimize.report.comparison import print_comparison

        print_comparison(found, _console())


@app.command()
def inspect(
    model: Annotated[
        Path, typer.Argument(help="An artifact, a diffusers pipeline or one of its parts, or a config.json.")
    ],
    batch: Annotated[int, typer.Option(help="Images at once.")] = 1,
    target: Annotated[str, typer.Option(help="Device class the roofline speaks of; here is this machine.")] = "here",
    precision: Annotated[
        str | None, typer.Option(help="Format the roofline computes in; fp16 on a GPU, else fp32.")
    ] = None,
    depth: Annotated[int, typer.Option(help="Names of a module's path that layers are summed by.")] = 2,
    measure: Annotated[bool, typer.Option(help="Time the network in torch eager, where it has weights.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for the report as JSON and a picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Where a model's parameters, MACs, bytes and time go, layer by layer; no run is needed.

    Example: optimize inspect exported/digits/final --depth 3 --out inspected
    """
    from optimize.inspection import cache_folder
    from optimize.inspection import inspect as look
    from optimize.report.breakdown import picture, print_breakdown

    console = _console(stderr=as_json)
    with console.status("Looking at the layers"):
        report = look(
            model, batch=batch, target=target, format=precision, depth=depth, measure=measure, cache=cache_folder()
        )
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        print_breakdown(report, console)
    if out is not None:
        drawn = picture(report, out / "layers.png")
        (out / "layers.json").write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"Picture: [bold]{drawn}[/bold]", soft_wrap=True)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="An artifact, e.g. exported/digits/final, or a run's folder.")],
    expect: Annotated[
        str | None, typer.Option(help="Digest that it must have, as an earlier verify printed it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that every file of an artifact, or of all artifacts of a run, is the one its manifest names.

    Example: optimize verify exported/digits/final
    """
    from optimize.trust import inspect_trust, require

    found = inspect_trust(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        from optimize.report.verified import print_verified

        print_verified(found, _console())
    require(found, expect)


@app.command()
def serve(
    path: Annotated[Path, typer.Argument(help="An artifact, or a finished run's folder (its final one is taken).")],
    runner: Annotated[
        str | None,
        typer.Option(help="name, name:precision or name:precision@device; by default the fastest installed."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is open to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.")] = 8000,
    triton: Annotated[
        Path | None, typer.Option(help="Write a Triton model repository to this folder instead of serving.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Triton: what clients call the model; the run's name.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Triton: images of one execution at most; 16.")] = None,
    queue_delay_us: Annotated[
        int | None, typer.Option(help="Triton: microseconds a request may wait for others; 2000.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Triton: cpu or cuda; cpu.")] = None,
) -> None:
    """Draw images in a browser for a quick look, or write what Triton loads.

    Example: optimize serve exported/digits
    """
    if triton is not None:
        from optimize.serving.triton import make_repository

        options = {"model": name, "max_batch": max_batch, "queue_delay_us": queue_delay_us, "device": device}
        made = make_repository(path, triton, **options)["triton"]
        for model, kind in made["models"].items():
            typer.echo(f"{triton / model}: {kind}")
        typer.echo(f"Serve it: tritonserver --model-repository {triton}")
        return
    from optimize.serving.quick import serve_forever

    serve_forever(path, runner, host, port, lambda line: typer.echo(line))


@app.command()
def gc(exported: Exported = Path("exported")) -> None:
    """Remove intermediate artifacts (exported/.cache); published variants stay.

    Example: optimize gc
    """
    import shutil

    cache = exported / ".cache"
    size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) if cache.is_dir() else 0
    if cache.is_dir():
        shutil.rmtree(cache)
    typer.echo(f"{cache}: {size / 2**20:.1f} MiB removed")


@app.command()
def schema(
    name: Annotated[str, typer.Argument(help="recipe, or a pass, exporter or source")] = "recipe",
) -> None:
    """Print the JSON schema of a recipe or of one pass or exporter.

    Example: optimize schema distill
    """
    from optimize.errors import unknown
    from optimize.recipe import Recipe
    from optimize.registry import EXPORTERS, PASSES

    if name == "recipe":
        typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))
        return
    for registry in (PASSES, EXPORTERS):
        if name in registry.names():
            typer.echo(json.dumps(registry.get(name).model_json_schema(), indent=1))
            return
    raise unknown("schema", name, ["recipe", *PASSES.names(), *EXPORTERS.names()])


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _log_to(path: Path) -> None:
    """Send this package's log, one line a step, to a file."""
    from optimize.errors import EnvironmentLacks

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path)
    except OSError as error:
        raise EnvironmentLacks(
            f"--exported: {path} cannot be written ({error.strerror}). Choose a folder you may write to."
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("optimize")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def main() -> None:
    """Entry point: runs a command and turns every error raised on purpose into one message and an exit code."""
    from optimize.errors import OptimizeError

    try:
        app(standalone_mode=True)
    except OptimizeError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.secho("interrupted; the same command goes on where it stopped", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
