"""The interleaved bench: real worker processes around made-up runners, and the torch runner on a tiny artifact."""

from __future__ import annotations

import json
import os
import textwrap
import time
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from optimize.architectures.artifact import save_model
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.errors import UserError
from optimize.measure.record import Measurement, Variant, speedup
from optimize.measure.turns import Worker, WorkerFailed, _looked_at, bench, thread_environment
from optimize.storage.commit import commit

PLUGIN = """
    import contextlib, os, time

    from optimize.configs import Config
    from optimize.errors import EnvironmentLacks
    from optimize.diffusion.network import TensorSpec
    from optimize.registry import RUNNERS

    @RUNNERS.register("fake")
    class Fake(Config):
        threads: int = 7
        seconds: float = 0.001
        gain: str = "0.5"
        dies_after: int = 10**9
        hangs_after: int = 10**9
        installed: bool = True
        cores_to: str = ""

        def open(self, folder):
            if not self.installed:
                raise EnvironmentLacks("fake: not installed")
            return FakeRunner(self)

    class FakeRunner(contextlib.AbstractContextManager):
        inputs = (TensorSpec("sample", ("B", 1, 16, 16)), TensorSpec("timestep", ("B",)), TensorSpec("class_labels", ("B",), "int64"))
        calls = 0

        def __init__(self, config):
            self.config = config

        def __exit__(self, *_):
            return None

        def describe(self):
            return {"device": "cpu", "threads": self.config.threads, "omp": os.environ["OMP_NUM_THREADS"]}

        def __call__(self, **tensors):
            self.calls += 1
            print("a library talks on stdout")
            os.write(1, b"and so does its C code")
            if self.calls > self.config.dies_after:
                os.abort()
            if self.calls > self.config.hangs_after:
                time.sleep(3600)
            time.sleep(self.config.seconds)
            self.cores = sorted(os.sched_getaffinity(0))
            if self.config.cores_to:
                with open(self.config.cores_to, "a") as f:
                    f.write(f"{self.cores}\\n")
            return tensors["sample"] * float(self.config.gain)
"""


@pytest.fixture
def artifact(tiny_model: Model, tmp_path: Path) -> Path:
    def write(folder: Path) -> dict[str, str]:
        save_model(folder, tiny_model)
        return {"id": "tiny"}

    commit(tmp_path / "artifact", write)
    return tmp_path / "artifact"


@pytest.fixture
def fake_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's package in the workers' path, found by its entry point."""
    about = tmp_path / "site" / "fake_runner-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-runner\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[optimize.plugins]\nfake = fake_runner\n")
    (tmp_path / "site" / "fake_runner.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


def variant(artifact: Path, key: str, runner: str = "fake", batch: int = 2, **options: object) -> Variant:
    return Variant(key=key, folder=str(artifact), runner=runner, batch=batch, options=options, threads=1)


@pytest.mark.usefixtures("fake_runner")
def test_variants_are_timed_in_turns_and_failures_stay_with_their_row(artifact: Path):
    asked = [
        variant(artifact, "a", seconds=0.05),  # far apart: other work on the machine must not decide
        variant(artifact, "b", seconds=0.001),
        variant(artifact, "missing", installed=False),
        variant(artifact, "nan", gain="inf"),
        variant(artifact, "dies", dies_after=1),
    ]
    seen: list[str] = []

    class Progress:
        def __call__(self, description: str, total: float) -> Progress:
            self.total = total
            return self

        def __enter__(self):
            return lambda n=1, note="": seen.append(note)

        def __exit__(self, *_: object) -> None:
            return None

    progress = Progress()
    a, b, *failed = bench(asked, rounds=3, calls_per_round=4, warm_s=0.2, progress=progress)
    assert (a.status, a.reason, b.reason) == ("done", "", "")
    assert [len(r) for r in a.call_s] == [len(r) for r in b.image_s] == [4, 4, 4]
    assert a.call_latency()["p50"] > 0.05 > b.call_latency()["p50"] > 0.001
    assert a.nfe == 8 and a.image_latency()["min"] > 4 * 0.05  # four guided steps, both branches in one call
    assert (a.runner["omp"], a.runner["threads"]) == ("1", 1)
    assert set(a.threads) == {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}  # nothing that slows one
    assert a.peak_memory_bytes and a.peak_memory_bytes >= a.memory["loaded_bytes"] > 0
    assert {"process_s", "import_s", "load_s", "first_call_s", "first_image_s"} == set(a.cold)
    assert speedup(a, b).value > 1.5

    reasons = {m.key: m.reason for m in failed}
    assert [m.status for m in failed] == ["refused", "failed", "failed"] and not any(m.done for m in failed)
    assert reasons["missing"] == "fake: not installed"
    assert "hold NaN or infinities" in reasons["nan"]
    assert "ended with code -6 at warm" in reasons["dies"]
    assert len(seen) == progress.total == 5 * 4 and len({*zip(seen[5::5], seen[6::5])}) > 1  # orders differ
    assert [Measurement.from_json(json.loads(json.dumps(m.to_json()))) for m in (a, *failed)] == [a, *failed]


@pytest.mark.usefixtures("fake_runner")
def test_a_policy_the_runner_does_not_have_is_a_refused_row(artifact: Path):
    asked = [variant(artifact, "device", io="device"), variant(artifact, "graphs", cuda_graphs=True)]
    asked = [v.model_copy(update=v.options | {"options": {}}) for v in asked]
    device, graphs = bench(asked, rounds=1, warm_s=0.1)
    assert (device.status, graphs.status) == ("refused", "refused")
    assert device.reason.startswith("runner fake: io device: it computes in the host's memory")
    assert graphs.reason.startswith("runner fake: CUDA graphs: it computes in the host's memory")


@pytest.mark.usefixtures("fake_runner")
def test_every_turn_has_its_conditions_and_calls_may_be_timed_alone(artifact: Path):
    (found,) = bench([variant(artifact, "a")], rounds=3, calls_per_round=2, warm_s=0.1, kinds=("call",))
    assert [len(r) for r in found.call_s] == [2, 2, 2] and found.image_s == []
    assert len(found.conditions) == 3 and all(t["throttled"] == [] and "load_1m" in t for t in found.conditions)
    assert found.runner["clock"] == "perf_counter around calls that return when they are done"
    assert found.artifact_id == "tiny" and found.memory["file_bytes"] == (artifact / "model.safetensors").stat().st_size
    derived = found.to_json()["derived"]
    assert "call_latency_s" in derived and "image_latency_s" not in derived
    assert ("reason" in found.energy) == (found.energy_j is None)


@pytest.mark.usefixtures("fake_runner")
def test_in_every_round_all_rows_run_on_the_same_core_drawn_anew(artifact: Path, tmp_path: Path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    files = [tmp_path / name for name in "ab"]
    asked = [variant(artifact, f.name, cores_to=str(f)) for f in files]
    bench(asked, rounds=8, calls_per_round=1, warm_s=0.0, kinds=("call",))
    a, b = (f.read_text().splitlines()[-16:] for f in files)  # two calls a turn, the first is not timed
    assert a == b and len(set(a)) > 1 and all(len(json.loads(x)) == 1 for x in a)


@pytest.mark.usefixtures("fake_runner")
def test_a_slow_variant_gives_one_sample_a_round_and_its_sampler_can_be_replaced(artifact: Path):
    short = Sampler(steps=1, guidance=Guidance())
    slow = variant(artifact, "slow", seconds=0.05).model_copy(update={"sampler": short})
    (found,) = bench([slow], rounds=2, turn_s=0.01, warm_s=0.1)
    assert [len(r) for r in found.image_s] == [1, 1] and found.nfe == 1
    assert found.image_latency()["min"] >= 0.05


@pytest.mark.usefixtures("fake_runner")
def test_slow_images_sit_out_every_other_round_when_asked(artifact: Path):
    one = {"sampler": Sampler(steps=1, guidance=Guidance())}
    slow = variant(artifact, "slow", seconds=0.05).model_copy(update=one)
    slower = variant(artifact, "slower", seconds=0.25).model_copy(update=one)
    fast = variant(artifact, "fast", seconds=0.0001).model_copy(update=one)
    a, b = bench([slower, fast], rounds=8, turn_s=0.02, warm_s=0.05, calls_per_round=1, fewest=3)
    assert [len(r) for r in a.image_s] == [1, 0] * 4 and [len(r) for r in a.call_s] == [1] * 8
    assert [len(r) for r in b.image_s] == [1] * 8 and speedup(a, b).n == 4
    (images,) = bench([slow], rounds=5, turn_s=0.001, warm_s=0.05, kinds=("image",), fewest=1)
    assert [len(r) for r in images.image_s] == [1, 0, 0, 0, 1] and images.call_s == []
    (every,) = bench([slow], rounds=4, turn_s=0.001, warm_s=0.05)
    assert [len(r) for r in every.image_s] == [1] * 4


def test_onnx_files_are_looked_at_once_for_all_workers_and_bad_ones_are_left_to_them(tmp_path: Path):
    good, bad, torch_only = (tmp_path / name for name in ("good", "bad", "torch"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for folder in (good, bad, torch_only):
        (folder / "onnx").mkdir(parents=True)
        (folder / "onnx/model.onnx").write_bytes(b"\x08" if folder == bad else model.SerializeToString())
    asked = [variant(good, "a", "onnxruntime"), variant(good, "b", "openvino"), variant(bad, "c", "onnxruntime")]
    found = {key[0] for key, _ in _looked_at([*asked, variant(torch_only, "d", "torch"), variant(tmp_path, "e")])}
    assert {Path(name).parts[-3] for name in found if str(tmp_path) in name} == {"good"}


@pytest.mark.usefixtures("fake_runner")
def test_a_worker_that_hangs_is_given_up_and_killed(artifact: Path):
    worker = Worker(thread_environment(1), timeout_s=120)
    try:
        slept = variant(artifact, "hangs", hangs_after=5)  # one call and four of the first images
        assert worker.ask({"do": "open", "variant": slept.to_json()})["nfe"] == 8
        worker.timeout_s = 0.5
        with pytest.raises(WorkerFailed, match=r"worker: no answer to warm within 0.5 s; killed"):
            worker.ask({"do": "warm", "limit_s": 0.1})
    finally:
        worker.kill()


@pytest.mark.usefixtures("fake_runner")
def test_no_worker_outlives_a_bench_that_is_broken_off(artifact: Path):
    import psutil

    class Stop(Exception):
        pass

    class Progress:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self):
            def advance(n: float = 1, note: str = "") -> None:
                raise Stop

            return advance

        def __exit__(self, *_: object) -> None:
            return None

    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with pytest.raises(Stop):
        bench([variant(artifact, "a")], progress=Progress, warm_s=0.1)
    time.sleep(0.1)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


def test_keys_given_twice_and_empty_rounds_are_refused(artifact: Path):
    with pytest.raises(UserError, match="keys given twice: a"):
        bench([variant(artifact, "a"), variant(artifact, "a")])
    with pytest.raises(UserError, match="rounds = 0"):
        bench([variant(artifact, "a")], rounds=0)


@pytest.mark.slow
def test_an_artifact_against_itself_is_neither_faster_nor_slower(artifact: Path):
    pytest.importorskip("optimize.diffusion.backend")
    a, b = bench([variant(artifact, k, "torch", batch=4) for k in "ab"], rounds=7, turn_s=0.2, warm_s=1.0)
    assert (a.status, a.reason, b.reason) == ("done", "", "")
    ratio = speedup(a, b)
    assert ratio.low <= 1.0 <= ratio.high


@pytest.mark.gpu
def test_on_a_gpu_policies_are_rows_with_device_memory_energy_and_clocks(artifact: Path):
    policies = [(io, graphs) for io in ("host", "device") for graphs in (False, True)]
    asked = [
        variant(artifact, f"{io}{graphs}", "torch", device="cuda").model_copy(update={"io": io, "cuda_graphs": graphs})
        for io, graphs in policies
    ]
    for row in bench(asked, rounds=6, turn_s=0.2, warm_s=0.5):
        assert row.status == "done", row.reason
        assert row.runner["clock"].startswith("perf_counter, device synchronized")
        assert row.memory["device_peak_bytes"] >= row.memory["device_allocated_peak_bytes"] > 0
        assert row.energy_j is not None and row.energy_j > 0
        assert all("sm_mhz" in turn["gpu"] for turn in row.conditions)
