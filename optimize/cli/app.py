"""The command line. Heavy imports happen inside commands, so `--help` answers at once.

Exit codes: 0 done, 1 a gate failed, 2 the user's input is wrong, 3 the environment lacks something, 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from optimize.cli import names as cli_names
from optimize.cli.asked import Asked, brief, told
from optimize.cli.hand_over import export
from optimize.cli.look import bench, compare, inspect, plan
from optimize.cli.options import AsJson, Exported, PriceTable, console_of

if TYPE_CHECKING:
    from rich.console import Console


def run(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file, or the name of a built-in recipe.", autocompletion=cli_names.recipes)
    ],
    exported: Exported = Path("exported"),
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
    prices: PriceTable = None,
) -> None:
    """Run a recipe: passes, exports, parity, benchmark, quality, gates, report.

    Example: optimize run digits --exported exported
    """
    from optimize.recipes.read import load

    loaded = load(recipe)
    loaded = loaded.model_copy(update={"prices": prices}) if prices else loaded
    from optimize.cli.bars import rich_progress
    from optimize.cli.log import logged
    from optimize.planning.refusals import will_not_pay
    from optimize.runs import place
    from optimize.runs.execute import run as run_recipe

    console = console_of(stderr=as_json)
    for line in will_not_pay(loaded):
        console.print(f"~ {line}", style="yellow", markup=False, highlight=False)
    place.check(loaded, exported / loaded.name)  # before its log is touched
    log = exported / loaded.name / place.LOG
    with logged(log), rich_progress(console, quiet or as_json) as progress:
        summary = run_recipe(loaded, exported, progress)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
    else:
        _show(summary, exported / loaded.name, console)
    raise typer.Exit(0 if summary["gates_passed"] else 1)


def _show(summary: dict[str, Any], folder: Path, console: Console) -> None:
    from rich.markup import escape

    from optimize.report.terminal.summary import print_table

    print_table(summary, console)
    console.print(f"Report: [bold]{escape(str(folder / 'report.html'))}[/bold]", soft_wrap=True)


def list_(as_json: AsJson = False) -> None:
    """List recipes, passes, exporters, runners and sources.

    Example: optimize list --json
    """
    from optimize import registry
    from optimize.recipes.paths import builtin

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
    width = shutil.get_terminal_size().columns
    for kind, names in found.items():
        indent = " " * 11
        lines = textwrap.wrap(
            ", ".join(names), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        typer.echo(f"{kind:<11}" + "\n".join(lines)[11:])


def report(
    folder: Annotated[Path, typer.Argument(help="A finished run's folder, e.g. exported/digits.")],
    as_json: AsJson = False,
) -> None:
    """Print a finished run's table again and rewrite its report.md and report.html.

    Example: optimize report exported/digits
    """
    from optimize.plain.shapes import as_shaped
    from optimize.runs.execute import write_reports
    from optimize.storage.weights import read_json

    summary = read_json(folder / "summary.json")
    with as_shaped(folder / "summary.json"):
        write_reports(summary, folder)
    if as_json:
        files = {kind: str(folder / f"report.{kind}") for kind in ("html", "md")}
        typer.echo(json.dumps(summary | {"files": files}, indent=1))
    else:
        with as_shaped(folder / "summary.json"):
            _show(summary, folder, console_of())


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
    from optimize.storage.trust import inspect_trust, require

    found = inspect_trust(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        from optimize.report.terminal.verified import print_verified

        print_verified(found, console_of())
    require(found, expect)


def serve(
    path: Annotated[Path, typer.Argument(help="An artifact, or a finished run's folder (its final one is taken).")],
    runner: Annotated[
        str | None,
        typer.Option(
            help="name, name:precision or name:precision@device; by default the fastest installed.",
            autocompletion=cli_names.runners,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is open to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 takes any free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A further name that browsers may call this server by. Repeat for more."),
    ] = None,
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
        typer.echo(" ".join([f"Serve it: tritonserver --model-repository {triton}", *made["server"]]))
        return
    from optimize.serving.quick import serve_forever

    serve_forever(path, runner, host, port, lambda line: typer.echo(line), allow_host or ())


def gc(exported: Exported = Path("exported")) -> None:
    """Remove intermediate artifacts (in exported/.cache); published variants stay, and so does whatever a run is using.

    Example: optimize gc
    """
    from optimize.storage.cache import CACHE
    from optimize.storage.garbage import collect

    found = collect(exported / CACHE)
    typer.echo(f"{exported / CACHE}: {found.bytes / 2**20:.1f} MiB removed")
    for line in found.told():
        typer.echo(line)


def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            help="recipe, or a pass, exporter, runner or source; kind/name where two share one.",
            autocompletion=cli_names.schemas,
        ),
    ] = None,
) -> None:
    """Print the JSON schema of a recipe, or of one pass, exporter, runner or source; without a name, what there is.

    Editors check and complete recipes by it: write `optimize schema recipe > recipe.json`, and begin the recipe with
    `# yaml-language-server: $schema=recipe.json`.

    Example: optimize schema distill
    """
    from optimize.recipes import json_schema

    if name is not None:
        typer.echo(json.dumps(json_schema.schema(name), indent=1))
        return
    for kind, names in json_schema.listed().items():
        typer.echo(f"{kind:<10} {', '.join(names)}")


INTERRUPTED = 130  # exit code of what Ctrl-C ended: 128 + SIGINT
# what the same command does again, where it does not begin again
GOES_ON = {
    "run": "goes on where it stopped",
    "export": "begins again with what is left, since finished engines are kept",
}


class Interrupted(Exception):
    """Ctrl-C during a command, which is named."""


class Commands(TyperGroup):
    """The commands. Ctrl-C is caught here: typer turns it into a silent exit before anything around it sees it."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """The command's result; raises Interrupted."""
        try:
            with brief():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Interrupted(ctx.invoked_subcommand or "") from stop


def interrupted_text(command: str, arguments: Sequence[str]) -> str:
    """What Ctrl-C says: whether the same command goes on or begins again, and that command."""
    named = command or next((a for a in arguments[1:] if not a.startswith("-")), "")  # stopped before it was read
    does = GOES_ON.get(named, "begins again")
    program = "python -m optimize" if arguments[0].endswith(".py") else Path(arguments[0]).name
    return f"interrupted; the same command {does}: {program} {shlex.join(arguments[1:])}"


def _version(asked: bool) -> None:
    if not asked:
        return
    from optimize import __version__
    from optimize.hardware.environment import versions

    typer.echo(f"optimize {__version__}")
    for name, found in versions(SHOWN).items():
        typer.echo(f"{name} {found}")
    raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print versions and exit."),
    ] = False,
) -> None:
    """Options of `optimize` itself."""


SHOWN = ("torch", "diffusers", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
app = typer.Typer(
    cls=Commands,
    rich_markup_mode="markdown",
    name="optimize",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Shrink trained diffusion models, prove what it cost, and export what a server loads.\n\nExample: optimize run digits",
)
app.callback()(options)
for command in (run, plan, export, serve, bench, compare, report, inspect, verify):
    app.command(cls=Asked)(command)
app.command("list", cls=Asked)(list_)
app.command(cls=Asked)(schema)
app.command(cls=Asked)(gc)


def main() -> None:
    """Entry point: runs a command and turns every error raised on purpose into one message and an exit code."""
    from optimize.errors import OptimizeError

    heard = _listening()
    try:
        app(standalone_mode=True, prog_name="optimize")
    except (Interrupted, KeyboardInterrupt) as stop:
        _stopped(str(stop))
    except Exception as error:
        if heard:  # native code that is interrupted may raise an error of its own, such as a file cut short
            _stopped("")
        error = told(_of_a_full_disk(error))
        if not isinstance(error, OptimizeError):
            raise
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)


def _of_a_full_disk(error: Exception) -> Exception:
    """What a writer that knows of no full disk said about one, as the error it is; other errors as they are."""
    from optimize.storage.disk import FULL, explained, number_of

    number = number_of(error)
    place = getattr(error, "filename", None)
    return explained(Path(place if isinstance(place, str) else "."), number, error) if number in FULL else error


def _listening() -> list[int]:
    """What Ctrl-C sent so far, beside the KeyboardInterrupt that it raises as ever."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, hear)
    return heard


def _stopped(command: str) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would only make a traceback of the way out
    typer.echo(interrupted_text(command, sys.argv), err=True)
    sys.exit(INTERRUPTED)
