"""What the README and docs/ tell a reader to do is done, in a folder where everything that they name is there and tiny."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.docs_blocks import PAGES, ROOT, Line, blocks, lines
from support.docs_workspace import make_workspace, shrunk
from typer.testing import CliRunner

from optimize.cli.app import app

NOT_HERE = 3  # exit code where this machine lacks what a command asks for
LEFT_OUT = {  # why a command is not carried out here; `test_docs.py` still reads it
    "optimize run": "`mine` is run by the fixture, shrunk; the shipped recipes have tests of their own",
    "optimize --version": "read only",
    "optimize --install-completion": "would change the user's shell",
}
SLOW = ("export", "bench")  # minutes on two cores


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation's folder, with the recipe of the README (quantized alone, to be quick) run as `exported/mine`."""
    folder = make_workspace(tmp_path_factory.mktemp("docs"))
    for block in blocks("python"):
        first = block.text.splitlines()[0]
        if first.startswith("# my/"):
            (folder / first.removeprefix("# ")).write_text(block.text)
    (prices,) = (b for b in blocks("yaml") if "currency" in b.text)
    (folder / "prices.yaml").write_text(prices.text)
    (recipe,) = blocks("yaml", "README.md")
    (folder / "mine.yaml").write_text(shrunk(recipe.text, ["quantize"]))
    done = optimize(folder, "run", "mine.yaml", "--quiet")
    assert done.exit_code == 0, done.output
    shutil.copytree(folder / "exported/mine", folder / "exported/old")
    for name in ("before", "mine"):
        shutil.copyfile(folder / "exported/mine/measurements.jsonl", folder / f"{name}.jsonl")
    return folder


def optimize(folder: Path, *arguments: str) -> Any:
    """The command line in a folder, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(app, list(arguments))


def carried_out() -> list[Any]:
    found = {line.argv: line for line in lines("optimize") if " ".join(line.argv[:2]) not in LEFT_OUT}
    stay = [line for line in found.values() if line.argv[1] != "serve" or "--triton" in line.argv]
    return [pytest.param(x, marks=pytest.mark.slow if x.argv[1] in SLOW else (), id=x.place) for x in stay]


def provide(folder: Path, line: Line) -> None:
    """What a command reads and another one of the documentation makes is made first."""
    made = {x.argv[x.argv.index("--out") + 1]: x for x in lines("optimize") if "--out" in x.argv}
    for name in line.argv[2:]:
        if name.startswith("exported/script/") and not (folder / name).exists():
            python(folder, "docs/python.md")
        elif name in made and made[name].argv != line.argv and not (folder / name).exists():
            provide(folder, made[name])
            assert optimize(folder, *made[name].argv[1:]).exit_code == 0


@pytest.mark.parametrize("line", carried_out())
def test_a_command_does_what_it_is_told(line: Line, workspace: Path) -> None:
    if "--adopt" in line.argv:
        pytest.skip("needs a kit that was built on a GPU; see the tests of adoption")
    provide(workspace, line)
    done = optimize(workspace, *line.argv[1:])
    needs_gpu = any("cuda" in word for word in line.argv)
    assert done.exit_code in ((0, NOT_HERE) if needs_gpu else (0,)), done.output + repr(done.exception)
    if "--out" in line.argv:
        assert (workspace / line.argv[line.argv.index("--out") + 1]).exists()
    if line.into or "--json" in line.argv:
        assert json.loads(done.stdout)


def python(folder: Path, page: str) -> None:
    """The python blocks of a page as one script, in a process of its own."""
    code = "\n".join(block.text for block in blocks("python", page))
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks("python", page)])
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    python(tmp_path, page)


def test_a_run_leaves_what_the_readme_says(workspace: Path) -> None:
    text = PAGES["README.md"].read_text().partition("## What comes out")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in cell.replace("`", "").replace(" ", "").split(",")]
    assert len(named) > 8 and all((workspace / "exported/mine" / name).exists() for name in named)


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_a_row_of_a_summary_has_the_keys_that_are_shown(block: Any, workspace: Path) -> None:
    row = json.loads((workspace / "exported/mine/summary.json").read_text())["rows"][-1]
    assert_within(json.loads(block.text), row)


def assert_within(shown: Any, found: Any) -> None:
    """Every key of `shown` is in `found`, with a value of the same kind."""
    if isinstance(shown, dict):
        assert set(shown) <= set(found), set(shown) - set(found)
        for key, value in shown.items():
            assert_within(value, found[key])
    else:
        assert isinstance(found, str) == isinstance(shown, str)


@pytest.fixture(scope="module")
def served(workspace: Path) -> Iterator[str]:
    """The address of the small server on the run's final artifact."""
    from optimize.serving.quick import Drawing, open_server

    with Drawing(workspace / "exported/mine", "onnxruntime") as drawing, open_server(drawing, port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("line", [x for x in lines("curl") if "-d" not in x.argv], ids=lambda line: line.place)
def test_the_small_server_answers_what_is_asked(line: Line, served: str) -> None:
    url = line.argv[1].replace("127.0.0.1:8000", served)
    with urllib.request.urlopen(url, timeout=60) as answer:
        kind, body = answer.headers["Content-Type"], answer.read()
    assert kind == ("image/png" if "format=png" in url else "application/json")
    if "count=16" in url:
        told = json.loads(body)
        assert len(told["images"]) == 16 and {"latency_ms", "nfe"} <= set(told) and "png" in told["images"][0]


def test_the_request_to_triton_is_one_for_a_model_of_the_repository(workspace: Path) -> None:
    (line,) = (x for x in lines("curl") if "-d" in x.argv)
    (written,) = (x for x in lines("optimize") if "--triton" in x.argv)
    done = optimize(workspace, *written.argv[1:])
    assert done.exit_code == 0, done.output
    model = line.argv[1].partition("/v2/models/")[2].removesuffix("/infer")
    about = (workspace / "models" / model / "config.pbtxt").read_text()
    for tensor in json.loads(line.argv[line.argv.index("-d") + 1])["inputs"]:
        assert f'name: "{tensor["name"]}"' in about and f"TYPE_{tensor['datatype']}" in about
    (server,) = lines("tritonserver")
    assert f"Serve it: {' '.join(server.argv)}" in done.output
    assert (workspace / "models" / f"{model}-onnx").is_dir()


@pytest.mark.slow
def test_the_recipe_of_the_readme_runs_with_every_pass(workspace: Path) -> None:
    (recipe,) = blocks("yaml", "README.md")
    (workspace / "whole.yaml").write_text(shrunk(recipe.text))
    done = optimize(workspace, "run", "whole.yaml", "--quiet", "--exported", "results", "--json")
    assert done.exit_code == 0, done.output
    assert {"prune", "recover", "distill", "quantize", "final"} <= {
        r["variant"] for r in json.loads(done.stdout)["rows"]
    }


@pytest.mark.slow
def test_a_recipe_without_labels_classifier_or_feature_network_runs(workspace: Path) -> None:
    """What docs/data-and-judges.md says is possible: magnitude, a function as features."""
    (recipe,) = blocks("yaml", "README.md")
    parts = [yaml.safe_load(b.text) for b in blocks("yaml", "docs/data-and-judges.md")]
    (passes,) = (p["passes"] for p in parts if "passes" in p)
    (quality,) = (p["quality"] for p in parts if "import" in p["quality"]["features"])
    whole = {**yaml.safe_load(recipe.text), "passes": passes, "quality": quality}
    value = yaml.safe_load(shrunk(yaml.safe_dump(whole)))
    for name in ("training", "held_out"):
        value["data"][name] = unlabelled(workspace / value["data"][name])
    (workspace / "bare.yaml").write_text(yaml.safe_dump(value))
    done = optimize(workspace, "run", "bare.yaml", "--quiet", "--exported", "results", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert "class_accuracy" not in summary["rows"][-1]["quality"] and "fd" in summary["gates"]


def unlabelled(path: Path) -> str:
    from safetensors.torch import load_file, save_file

    target = path.with_stem(f"{path.stem}-bare")
    save_file({"images": load_file(path)["images"]}, target)
    return str(target)
