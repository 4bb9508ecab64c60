"""The training loop: a killed run that is resumed ends with the same bits; faults are one clear error."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from optimize import rng
from optimize.diffusion.context import Data
from optimize.errors import ArtifactError, EnvironmentLacks, OptimizeError, UserError
from optimize.training import loop
from optimize.training.loop import Share, TrainingConfig, draw, train
from optimize.training.whole_state import refuse_incomplete

CONFIG = TrainingConfig(steps=12, batch=8, learning_rate=0.02, warmup=2, ema=0.9, precision="fp32", checkpoint_s=0)
INPUTS, OUTPUTS = 6, 3


def network() -> nn.Module:
    """A net with dropout and a buffer-carrying layer, weights from a key."""
    module = nn.Sequential(
        nn.Linear(INPUTS, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, OUTPUTS)
    )
    for name, p in module.named_parameters():
        if p.dim() > 1:
            p.data = torch.from_numpy(rng.normal(tuple(p.shape), "network", name)) / 4
        else:
            p.data.fill_(0.5)
    return module


def regression(module: nn.Module, step: int, share: Share, batch: int = 8) -> torch.Tensor:
    x = torch.from_numpy(rng.normal((batch, INPUTS), "test-x", step)[share.of(batch)])
    y = torch.sin(x[:, :OUTPUTS] * 2)
    return (module(x) - y).square().mean()


def run(folder: Path | None, loss: loop.Loss = regression, config: TrainingConfig = CONFIG) -> tuple[dict, dict]:
    module = network()
    record = train(module, loss, config, seed=0, name="test", checkpoints=folder)
    return module.state_dict(), record


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(Exception):
    pass


def killed_at(fatal: int) -> loop.Loss:
    def loss(module: nn.Module, step: int, share: Share) -> torch.Tensor:
        if step == fatal:
            raise Killed
        return regression(module, step, share)

    return loss


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("fatal", [0, 1, 7, 11])
def test_a_run_killed_at_any_step_and_resumed_ends_with_the_same_bits(tmp_path: Path, fatal: int, ema: float) -> None:
    config = CONFIG.model_copy(update={"ema": ema})
    whole = run(None, config=config)
    with pytest.raises(Killed):
        run(tmp_path, killed_at(fatal), config)
    seen: list[int] = []

    def counted(module: nn.Module, step: int, share: Share) -> torch.Tensor:
        seen.append(step)
        return regression(module, step, share)

    resumed = run(tmp_path, counted, config)
    assert same(resumed[0], whole[0])
    assert resumed[1] == whole[1]
    assert seen == list(range(fatal, config.steps))  # nothing trained twice: a checkpoint lies after every step


def test_when_checkpoints_are_written_changes_no_bit(tmp_path: Path) -> None:
    rarely = CONFIG.model_copy(update={"checkpoint_s": 1e9})
    assert same(run(tmp_path, config=rarely)[0], run(None)[0])
    with pytest.raises(Killed):
        run(tmp_path / "killed", killed_at(9), rarely)
    assert not (tmp_path / "killed").exists()
    assert same(run(tmp_path / "killed", config=CONFIG)[0], run(None)[0])


def test_a_finished_run_found_again_trains_no_step(tmp_path: Path) -> None:
    whole = run(tmp_path)
    again = run(tmp_path, killed_at(CONFIG.steps - 1))
    assert same(whole[0], again[0]) and whole[1] == again[1]
    assert len(list(tmp_path.iterdir())) == 1  # older checkpoints are dropped


# this package, and this file for what the scripts take from it
PYTHONPATH = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
SCRIPT = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from test_loop import CONFIG, network, regression
from optimize.training.loop import train
torch.set_num_threads(1)
def slowly(module, step, share):
    time.sleep(float(sys.argv[3]))
    return regression(module, step, share)
module = network()
train(module, slowly, CONFIG, seed=0, name="test", checkpoints=Path(sys.argv[1]))
save_file(module.state_dict(), sys.argv[2])
"""


def start(folder: Path, result: Path, pause_s: float) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(result), str(pause_s)]
    return subprocess.Popen(command, cwd=root, env=environment)


def test_a_process_killed_with_signal_9_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = run(None)[0]
    torch.set_num_threads(threads)
    process = start(tmp_path / "state", tmp_path / "killed", 1.0)
    deadline = time.monotonic() + 50
    while not list((tmp_path / "state").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    assert list((tmp_path / "state").glob("step-*"))
    assert start(tmp_path / "state", tmp_path / "resumed", 0.0).wait(timeout=60) == 0
    assert same(load_file(tmp_path / "resumed"), whole)


def test_a_damaged_checkpoint_is_said_and_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Killed):
        run(tmp_path, killed_at(5))
    state = next(tmp_path.glob("step-*")) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        weights = run(tmp_path)[0]
    assert "this checkpoint is not used" in caplog.text and "state.safetensors is changed" in caplog.text
    assert same(weights, run(None)[0])


def test_a_checkpoint_of_other_settings_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Killed):
        run(tmp_path, killed_at(5), CONFIG.model_copy(update={"learning_rate": 0.5}))
    with caplog.at_level(logging.WARNING):
        weights = run(tmp_path)[0]
    assert "belongs to another config" in caplog.text
    assert same(weights, run(None)[0])


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    def diverging(module: nn.Module, step: int, share: Share) -> torch.Tensor:
        return regression(module, step, share) * (float("nan") if step == 4 else 1.0)

    with pytest.raises(OptimizeError, match=r"the loss is nan at step 4 of 12. Lower learning_rate \(0.02\)"):
        run(None, diverging)


def test_training_lowers_the_loss_and_leaves_the_module_frozen() -> None:
    config = TrainingConfig(steps=150, batch=64, learning_rate=0.02, ema=0.9, precision="fp32")
    module = network()
    record = train(module, lambda m, i, s: regression(m, i, s, 64), config, seed=0, name="test")
    assert record["steps"] == 150 and len(record["loss"]["curve"]) <= loop.CURVE_POINTS
    assert record["loss"]["last"] < 0.5 * record["loss"]["first"]
    assert not module.training and not any(p.requires_grad or p.grad is not None for p in module.parameters())


def test_the_average_is_what_is_kept() -> None:
    module, seen = network(), []

    def watched(m: nn.Module, step: int, share: Share) -> torch.Tensor:
        seen.append(m[0].weight.detach().clone())
        return regression(m, step, share)

    config = CONFIG.model_copy(update={"steps": 3})
    train(module, watched, config, seed=0, name="test")
    average = seen[0]
    last = network()
    train(last, regression, config.model_copy(update={"ema": 0.0}), seed=0, name="test")
    for step, weight in enumerate([seen[1], seen[2], last[0].weight]):  # type: ignore[index]
        decay = loop.ema_decay(config, step)
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(module[0].weight, average, atol=1e-7)  # type: ignore[index]


def test_the_rate_rises_then_falls_to_zero() -> None:
    config = TrainingConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [loop.learning_rate(config, i) for i in range(101)]
    assert rates[0] < 0.1 and max(rates) > 0.95 and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates.index(max(rates)) in (9, 10)


def test_shares_cut_the_batch_into_equal_parts() -> None:
    assert [Share(i, 4).of(8) for i in range(4)] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    with pytest.raises(UserError, match="batch: 9 given, allowed are multiples of the 2 processes"):
        Share(0, 2).of(9)


def test_shares_of_a_drawn_batch_join_to_the_whole(tiny_data: Data) -> None:
    whole = draw(tiny_data, 8, Share(), "t", 0, 3)
    parts = [draw(tiny_data, 8, Share(i, 2), "t", 0, 3) for i in range(2)]
    assert torch.equal(torch.cat([p.x for p in parts]), whole.x)
    assert torch.equal(torch.cat([p.eps for p in parts]), whole.eps)
    assert [*parts[0].uniform, *parts[1].uniform] == whole.uniform.tolist()
    assert not torch.equal(draw(tiny_data, 8, Share(), "t", 0, 4).x, whole.x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_missing_device_is_said() -> None:
    with pytest.raises(EnvironmentLacks, match='device: "cuda" given, but torch sees no CUDA device'):
        train(network(), regression, CONFIG, seed=0, name="test", device="cuda")


def test_auto_precision_is_bf16_only_where_the_processor_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "instructions", lambda: ["avx2"])
    assert loop.resolve_precision("auto", "cpu") == "fp32"
    monkeypatch.setattr(loop, "instructions", lambda: ["avx2", "avx512_bf16"])
    assert loop.resolve_precision("auto", "cpu") == "bf16"
    assert loop.resolve_precision("fp32", "cpu") == "fp32"


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"steps": 0}, {"ema": 1.0}, {"learning_rate": 0.0}, {"precision": "fp16"}, {"epochs": 3}):
        with pytest.raises(ValidationError):
            TrainingConfig(**wrong)


RANKS = """
import sys
import torch
from safetensors.torch import save_file
from test_loop import ranked
torch.set_num_threads(1)
ranked(sys.argv[1])
"""


def ranked(result: str) -> None:
    """Train on as many processes as were launched; rank 0 saves the weights."""
    module = network()
    module[2] = nn.Identity()  # batch norm is in evaluation mode, but its buffers would be broadcast
    train(module, regression, CONFIG.model_copy(update={"ema": 0.0}), seed=0, name="ranks")
    if os.environ.get("RANK", "0") == "0":
        save_file(module.state_dict(), result)


@pytest.mark.slow
def test_two_gloo_ranks_give_one_ranks_weights(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    common = {
        **os.environ,
        "PYTHONPATH": PYTHONPATH,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29631",
    }
    started = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, "-c", RANKS, str(tmp_path / "two")]
        started.append(subprocess.Popen(command, cwd=root, env={**common, **place}))
    assert [p.wait(timeout=100) for p in started] == [0, 0]
    ranked(str(tmp_path / "one"))
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)


def test_the_state_holds_nothing_but_tensors_and_json(tmp_path: Path) -> None:
    run(tmp_path)
    names = sorted(p.name for p in next(tmp_path.glob("step-*")).iterdir())
    assert names == ["manifest.json", "state.safetensors", "training.json"]


def test_a_checkpoint_that_is_not_the_whole_state_is_refused_by_names() -> None:
    own = {"weights/a": torch.zeros(2), "ema/a": torch.zeros(2)}
    refuse_incomplete(own | {"adam/a/step": torch.zeros(())}, own, ["a"], Path("step-1"))
    wrong = {"weights/a": torch.zeros(3), "adam/b/step": torch.zeros(())}
    with pytest.raises(
        ArtifactError, match=r"1 missing \(ema/a\); 1 unexpected \(adam/b/step\); 1 of another shape \(weights/a\)"
    ):
        refuse_incomplete(wrong, own, ["a"], Path("step-1"))
