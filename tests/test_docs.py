"""Every block, command, link and table of the README and of docs/ is what it says. What they lead to is carried out in
`test_docs_carried_out.py`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from support.docs_blocks import (
    BLOCKS,
    LINES,
    PAGES,
    ROOT,
    Block,
    Line,
    anchors,
    blocks,
    codes,
    lines,
    links,
    prose,
    rows,
)

import optimize
from optimize import errors
from optimize.architectures.known import ARCHITECTURES
from optimize.architectures.lora import lora_option
from optimize.delivery.as_onnx import parse_onnx
from optimize.diffusion.backend import runner_config, spec_parts
from optimize.diffusion.sampling import SOLVERS, Sampler
from optimize.engines.place import classes
from optimize.hardware.targets import NAMES
from optimize.measure.bench import numbers
from optimize.measure.cost import load_prices
from optimize.quality.metrics import DEFAULT_METRICS, METRICS
from optimize.recipes.read import parse
from optimize.recipes.schema import BenchmarkConfig, Gates, Recipe
from optimize.registry import EXPORTERS, GROUP, PASSES, RUNNERS

PROMISED = "recipes data-and-judges networks pipelines quantization engines serving planning measuring python extending glossary"
LANGUAGES = {"bash", "yaml", "python", "json", "toml"}
PROGRAMS = {"optimize", "make", "python", "curl", "tritonserver"}
PUBLIC = {"configs", "registry", "errors", "plugins"}  # of `optimize.…`; plugins is the entry-point group


def placed(value: Block | Line) -> str:
    return value.place


def test_the_readme_is_one_page() -> None:
    assert len(PAGES["README.md"].read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", PROMISED.split())
def test_a_promised_page_is_there_linked_and_opens_with_a_command(name: str) -> None:
    page = f"docs/{name}.md"
    text = PAGES[page].read_text()
    assert page in links("README.md") and text.startswith("# ")
    assert min(b.line for b in BLOCKS if b.page == page) <= 15
    assert lines_of(page)


def lines_of(page: str) -> list[Line]:
    return [line for line in LINES if line.place.startswith(f"{page}:")]


def test_every_block_is_in_a_language_that_is_tested() -> None:
    assert not [b.place for b in BLOCKS if b.language not in LANGUAGES]


def test_every_command_is_of_a_program_that_is_tested() -> None:
    assert not [line for line in LINES if line.argv[0] not in PROGRAMS]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), link


@pytest.mark.parametrize("page", PAGES)
def test_no_page_speaks_of_files_inside_the_package(page: str) -> None:
    """They move; what users may import stays."""
    text = PAGES[page].read_text()
    named = {m for m in re.findall(r"\boptimize\.([a-z_]+)", text) if m not in (*optimize.__all__, "yaml")}
    assert named <= PUBLIC, named
    assert not re.findall(r"\boptimize/[\w/]+\.\w+", text)


# yaml, json, toml


@pytest.mark.parametrize("block", blocks("yaml"), ids=placed)
def test_a_recipe_or_part_of_one_is_valid(block: Block, tmp_path: Path) -> None:
    value = yaml.safe_load(block.text)
    if "currency" in value:
        (tmp_path / "prices.yaml").write_text(block.text)
        assert set(load_prices(tmp_path / "prices.yaml").prices) == set(value["prices"])
        return
    (whole,) = blocks("yaml", "README.md")
    text = block.text if "version" in value else yaml.safe_dump({**yaml.safe_load(whole.text), **value})
    assert parse(text).name == yaml.safe_load(text)["name"]


def test_the_schema_an_editor_reads_is_the_file_that_is_made() -> None:
    (made,) = [line.into for line in LINES if line.into]
    named = re.findall(r"yaml-language-server: \$schema=(\S+)", PAGES["docs/recipes.md"].read_text())
    assert named == [made]


@pytest.mark.parametrize("block", blocks("json"), ids=placed)
def test_json_is_json(block: Block) -> None:
    assert json.loads(block.text)


@pytest.mark.parametrize("block", blocks("toml"), ids=placed)
def test_an_entry_point_is_of_the_group_that_is_loaded(block: Block) -> None:
    assert list(tomllib.loads(block.text)["project"]["entry-points"]) == [GROUP]


# commands


def command() -> Any:
    from typer.main import get_command

    from optimize.cli.app import app

    return get_command(app)


@pytest.mark.parametrize("line", [x for x in lines("optimize") if x.argv[1].startswith("-")], ids=placed)
def test_an_option_of_the_whole_program_exists(line: Line) -> None:
    assert line.argv[1] in {name for parameter in command().params for name in parameter.opts}


@pytest.mark.parametrize("line", [x for x in lines("optimize") if not x.argv[1].startswith("-")], ids=placed)
def test_the_command_line_takes_a_command_with_its_options_and_values(line: Line) -> None:
    group = command()
    name, found, rest = group.resolve_command(click.Context(group), list(line.argv[1:]))
    parameters = found.make_context(name, list(rest)).params
    for option, value in parameters.items():
        if value is not None and (name, option) in VALUES:
            for each in value if isinstance(value, list | tuple) else [value]:
                VALUES[name, option](each)


def one_of(*names: str) -> Any:
    """A check of values separated by commas."""

    def check(text: str) -> None:
        assert set(text.split(",")) <= set(names), f"{text}: allowed {names}"

    return check


def runners(text: str) -> None:
    for spec in text.split(","):
        name, options = spec_parts(spec)
        runner_config(name, **options)


VALUES: dict[tuple[str, str], Any] = {  # options whose text the program reads only later
    ("plan", "target"): one_of(*NAMES),
    ("export", "target"): lambda text: classes(tuple(text.split(","))),
    ("export", "format"): one_of(*EXPORTERS.names()),
    ("export", "onnx"): lambda text: parse_onnx([text]),
    ("export", "batch"): lambda text: numbers(text, "--batch"),
    ("export", "lora"): lora_option,
    ("export", "lora_as"): one_of("merged", "switch"),
    ("bench", "runner"): runners,
    ("bench", "batch"): lambda text: numbers(text, "--batch"),
    ("bench", "io"): one_of("host", "device", "both"),
    ("bench", "cuda_graphs"): one_of("off", "on", "both"),
    ("bench", "sampler"): one_of(*SOLVERS),
    ("schema", "name"): one_of("recipe", *PASSES.names(), *EXPORTERS.names()),
}  # fmt: skip


@pytest.mark.parametrize("line", lines("make"), ids=placed)
def test_a_make_target_exists(line: Line) -> None:
    assert re.search(rf"^{line.argv[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_tests_that_the_makefile_runs_are_there() -> None:
    named = re.findall(r"\btests/\S+", (ROOT / "Makefile").read_text())
    assert named and all(list(ROOT.glob(name)) for name in named), named


TAKES = """
import argparse, json, runpy, sys
class Taken(Exception): pass
parse = argparse.ArgumentParser.parse_args
def taken(self, *given):
    parse(self, *given)
    raise Taken
argparse.ArgumentParser.parse_args = taken
sys.path.insert(0, "benchmarks")
for argv in json.loads(sys.argv[1]):
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except Taken:
        continue
    raise SystemExit(f"{argv}: its arguments were never read")
"""


def test_the_benchmark_programs_take_their_arguments() -> None:
    """Each reads them with argparse, or takes none at all."""
    given = [line.argv[1:] for line in lines("python") if line.argv[1].startswith("benchmarks/")]
    reads = [argv for argv in given if "parse_args" in (ROOT / argv[0]).read_text()]
    assert reads and all(len(argv) == 1 for argv in given if argv not in reads)
    command = [sys.executable, "-c", TAKES, json.dumps(reads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_build_kits_program_takes_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    from optimize.engines import script

    given = kit_commands()
    assert given
    for argv in given:
        with pytest.raises(SystemExit) as ended:
            script.main([*argv, "--help"])
        assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for argv in given for flag in argv if flag.startswith("--"))


def kit_commands() -> list[list[str]]:
    """Arguments of `python build.py`, in blocks and in the text."""
    told = [c.split()[2:] for page in PAGES for c in codes(prose(page)) if c.startswith("python build.py")]
    return [*told, *(list(line.argv[2:]) for line in lines("python") if line.argv[1] == "build.py")]


def test_every_python_command_is_checked() -> None:
    assert all(x.argv[1] == "build.py" or x.argv[1].startswith("benchmarks/") for x in lines("python"))


def test_options_named_in_the_text_exist() -> None:
    """`--option` in backticks is one of some command, or of a program beside it."""
    known = {o for c in command().commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    known |= {o for p in command().params for o in p.opts} | {"--sm", "--any-gpu"}
    told = {word for page in PAGES for code in codes(prose(page)) for word in code.split() if word.startswith("--")}
    assert told <= known, told - known


# tables and claims


FIELDS: list[tuple[str, str, Any]] = [
    *[("docs/recipes.md", name, PASSES.get(name)) for name in ("prune", "recover", "distill")],
    ("docs/quantization.md", "quantize", PASSES.get("quantize")),
    ("docs/measuring.md", "benchmark", BenchmarkConfig),
    ("docs/recipes.md", "How the model is used today", Sampler),
]


@pytest.mark.parametrize(("page", "heading", "config"), FIELDS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_table_of_fields_has_their_names_and_defaults(page: str, heading: str, config: Any) -> None:
    found = rows(page, heading)
    assert found
    for field, default, _ in found:
        (name,) = codes(field)
        about = config.model_fields[name]
        if default == "required":
            assert about.is_required(), name
            continue
        if not codes(default):
            assert config is Sampler and f"{name}:" not in default  # what the scheduler's config says, in words
            continue
        value = about.get_default(call_default_factory=True)
        told = yaml.safe_load(codes(default)[0])
        assert told == (list(value) if isinstance(value, tuple) else value), name


def test_the_table_of_gates_has_their_defaults() -> None:
    for name, default, _ in rows("docs/recipes.md", "Gates and targets"):
        (gate,) = codes(name)
        if default == "always":
            assert gate not in Gates.model_fields
            continue
        told = yaml.safe_load("{" + ", ".join(codes(default)).strip("{}") + "}")
        assert told == getattr(Gates(), gate).to_json(), gate


NAMES_IN_TABLES: list[tuple[str, str, list[str]]] = [
    ("docs/data-and-judges.md", "The figures", sorted(METRICS)),
    ("docs/measuring.md", "Choosing what is timed", RUNNERS.names()),
    ("docs/networks.md", "Networks that work as they come", sorted(ARCHITECTURES)),
]


@pytest.mark.parametrize(("page", "heading", "names"), NAMES_IN_TABLES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_table_of_names_is_complete(page: str, heading: str, names: list[str]) -> None:
    assert sorted(c for row in rows(page, heading) for c in codes(row[0])) == names


def test_the_programs_that_check_are_there() -> None:
    named = [c for row in rows("docs/measuring.md", "Check the checker") for c in codes(row[0])]
    assert named and all((ROOT / "benchmarks" / name).is_file() for name in named)


def test_the_functions_and_errors_of_the_python_page_exist() -> None:
    text = prose("docs/python.md")
    named = set(re.findall(r"`optimize\.(\w+)\(", text))
    assert {"load", "sample", "apply", "export", "open_runner", "run", "compare"} <= named <= set(optimize.__all__)
    assert all(hasattr(errors, codes(row[0])[0]) for row in rows("docs/python.md", "Errors"))


def test_the_devices_named_in_planning_are_those_there_are() -> None:
    (line,) = [x for x in prose("docs/planning.md").splitlines() if x.startswith("Targets are ")]
    assert sorted(codes(line)) == sorted(NAMES)


@pytest.mark.parametrize("missing", ["source", "data", "quality", "quality.features", "data.held_out"])
def test_what_is_called_compulsory_is(missing: str) -> None:
    (whole,) = blocks("yaml", "README.md")
    value = yaml.safe_load(whole.text)
    outer, _, inner = missing.partition(".")
    (value[outer] if inner else value).pop(inner or outer)
    with pytest.raises(errors.UserError, match=rf"{missing}: missing"):
        parse(yaml.safe_dump(value))


def test_what_is_called_optional_is() -> None:
    (whole,) = blocks("yaml", "README.md")
    value = {k: v for k, v in yaml.safe_load(whole.text).items() if k in ("name", "source", "data", "quality")}
    del value["quality"]["classifier"]
    made = parse(yaml.safe_dump(value))
    assert isinstance(made, Recipe) and made.quality.classifier is None
    named = re.search(r"Without `metrics` you get (.*?)\.", prose("docs/data-and-judges.md"))
    assert named and codes(named[1]) == list(DEFAULT_METRICS)
