"""The command line: exit codes, messages without tracebacks, help with examples, and a quick start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import optimize


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
    done = optimize("run", "digits", cwd=tmp_path)
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
