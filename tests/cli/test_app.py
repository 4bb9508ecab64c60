"""The command line: exit codes, messages without tracebacks, help with examples, and a quick start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import typer
from support.command import optimize

from optimize.cli import names


def test_a_malformed_recipe_reports_every_error_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nsorce: {}\nsampler: {steps: 0}\ntarget: a10x\n")
    done = optimize("run", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    for part in ('Did you mean "source"', "sampler.steps", "target", "quality: missing"):
        assert part in done.stderr
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    "arguments", [("run", "digit"), ("verify", "nowhere"), ("schema", "prun"), ("report", "nowhere")]
)
def test_wrong_input_is_one_message_and_exit_code_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = optimize(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_missing_inputs_of_a_recipe_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text((resources.files("optimize.recipes") / "digits.yaml").read_text())
    done = optimize("run", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert all(f in done.stderr for f in ("source.path", "data.training", "quality.features"))


def test_help_shows_an_example_for_every_command() -> None:
    commands = ("run", "plan", "inspect", "bench", "export", "compare", "list", "report", "verify", "gc", "schema")
    assert all("Example" in optimize(c, "--help").stdout for c in commands)


def test_list_and_schema_are_json_on_request() -> None:
    found = json.loads(optimize("list", "--json").stdout)
    assert {"prune", "recover", "distill", "quantize"} <= set(found["passes"])
    assert json.loads(optimize("schema", "distill").stdout)["additionalProperties"] is False


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, optimize.cli.app as c\ntry: c.app(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'diffusers', 'matplotlib', 'yaml'} & set(sys.modules), sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_version_comes_first_and_libraries_after_it_without_being_imported() -> None:
    import importlib.metadata as metadata

    from optimize import __version__

    first, *others = optimize("--version").stdout.splitlines()
    assert first == f"optimize {__version__}"
    assert f"torch {metadata.version('torch')}" in others and f"diffusers {metadata.version('diffusers')}" in others
    code = "import sys, optimize.cli.app as c\ntry: c.app(['--version'])\nexcept SystemExit as e: assert not e.code\n"
    code += "assert not {'torch', 'diffusers', 'onnxruntime', 'openvino', 'tensorrt'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("optimize "), done.stderr


def test_a_library_that_is_not_installed_is_not_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimize.cli import app

    monkeypatch.setattr(app, "SHOWN", ("torch", "no-such-library-of-a-test"))
    with pytest.raises(typer.Exit):
        app._version(True)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["optimize", "torch"]


COMPLETE = """
import sys
sys.argv = ["optimize"]
from optimize.cli import names
from optimize.cli.app import main
try:
    main()
finally:
    heavy = {"torch", "numpy", "diffusers", "matplotlib", "yaml", "rich.console"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("run d", {"digits", "digits-one-step"}),
        ("run ./m", set()),  # a file, which the shell finds by itself
        ("run mi", {"mine.yaml"}),
        ("plan sm", {"smoke"}),
        ("plan smoke --like dig", {"digits", "digits-one-step"}),
        ("plan smoke --target a100,rtx", {"a100,rtx3090", "a100,rtx4090"}),
        ("plan smoke --target a100,a1", {"a100,a10"}),
        ("inspect x --target v", {"v100"}),
        ("export x --target t", {"t4"}),
        ("export x --format on", {"onnx"}),
        ("bench x --runner torch,o", {"torch,onnxruntime", "torch,openvino"}),
        ("serve x --runner openv", {"openvino"}),
        ("schema pru", {"prune"}),
        ("schema runner/tensorrt_", {"runner/tensorrt_rtx"}),
        ("schema rec", {"recipe", "recover"}),
        ("sche", {"schema"}),
        ("run nothing-like-it", set()),
    ],
)
def test_the_shell_completes_names_and_nothing_heavy_is_imported(typed: str, offered: set[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    words = {"COMP_WORDS": f"optimize {typed}", "COMP_CWORD": str(len(typed.split()))}
    env = {**os.environ, **words, "_OPTIMIZE_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", COMPLETE]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60)
    assert done.returncode == 0 and set(done.stdout.split()) == offered, done.stderr


def test_completion_can_be_installed_and_shown() -> None:
    shown = optimize("--help").stdout
    assert "--install-completion" in shown and "--show-completion" in shown


def test_schema_without_a_name_lists_what_there_is_and_shows_runners_and_sources() -> None:
    lines = dict(line.split(None, 1) for line in optimize("schema").stdout.splitlines())
    assert lines["recipe"] == "recipe" and "prune" in lines["pass"] and "module" in lines["source"]
    assert "runner/tensorrt" in lines["runner"]
    assert "threads" in json.loads(optimize("schema", "openvino").stdout)["properties"]
    passes = json.loads(optimize("schema", "recipe").stdout)["properties"]["passes"]
    assert set(passes["items"]["properties"]) >= {"prune", "recover", "distill", "quantize"}


def test_report_as_json_is_the_summary_with_the_paths_of_its_pages(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"recipe": "r", "rows": []}))
    found = json.loads(optimize("report", ".", "--json", cwd=tmp_path).stdout)
    assert found["recipe"] == "r" and found["files"] == {"html": "report.html", "md": "report.md"}
    assert all((tmp_path / f).stat().st_size for f in found["files"].values())


def test_a_plan_reports_every_problem_at_once(tmp_path: Path) -> None:
    files = ("--prices", "gone.yaml", "--measurements", "gone.jsonl")
    done = optimize("plan", "nowhere/model", "--target", "a1000,v100", "--latency-ms", "-1", *files, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in (
        'target: "a1000" is not known. Did you mean "a100"?',
        "prices: no such file: gone.yaml",
        "measurements: no such file: gone.jsonl",
        'model: "nowhere/model" is no folder and no recipe',
        "--latency-ms: given -1",
    ):
        assert part in done.stderr


def test_a_negative_budget_is_refused(tmp_path: Path) -> None:
    done = optimize("plan", "digits", "--latency-ms", "-1", "--size-mb", "-2", cwd=tmp_path)
    assert done.returncode == 2
    assert "--latency-ms: given -1" in done.stderr and "--size-mb: given -2" in done.stderr


def test_a_run_with_a_missing_price_table_is_refused(tmp_path: Path) -> None:
    done = optimize("run", "digits", "--prices", "gone.yaml", cwd=tmp_path)
    assert done.returncode == 2 and "prices: no such file: gone.yaml" in done.stderr


def test_completion_of_a_recipe_lists_nothing_where_a_folder_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("")
    assert names.recipes("mi") == ["mine.yaml"]
    assert names.recipes(f"{'a' * 300}/") == names.recipes("mine.yaml/") == names.recipes("nowhere/") == []


def test_gc_says_what_it_removed_and_what_it_left_alone(tmp_path: Path) -> None:
    from optimize.storage.cache import CACHE, Store

    with Store(tmp_path / CACHE) as store:
        stage = store.stage("s", {}, lambda folder, work: {"made": (folder / "f").write_text("x" * 2**20)})
    (tmp_path / CACHE / "pip").mkdir()
    done = optimize("gc", "--exported", str(tmp_path))
    assert done.returncode == 0 and not stage.folder.exists() and (tmp_path / CACHE / "pip").is_dir()
    assert done.stdout.splitlines() == [
        f"{tmp_path / CACHE}: 1.0 MiB removed",
        "left alone, since it is not what optimize put there, or not only: pip",
    ]


def test_a_line_that_the_storage_warns_of_is_on_stderr_and_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    from optimize.cli.log import logged

    loggers = [logging.getLogger(name) for name in ("optimize", "optimize.storage")]
    before = [list(logger.handlers) for logger in loggers]
    with logged(tmp_path / "deep" / "run.log"):
        logging.getLogger("optimize.storage.locks").warning("this one waits")
        logging.getLogger("optimize.planning").warning("printed elsewhere")
    assert [list(logger.handlers) for logger in loggers] == before  # nothing stays for the next command
    assert capsys.readouterr().err == "~ this one waits\n"
    lines = (tmp_path / "deep" / "run.log").read_text().splitlines()
    assert [line.split(" ", 3)[3] for line in lines] == [
        "optimize.storage.locks this one waits",
        "optimize.planning printed elsewhere",
    ]
