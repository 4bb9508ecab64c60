"""Model repositories, read back with Triton's own protobuf: names, types, shapes, batching, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import networks
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from optimize.architectures.artifact import sampler_json, save_model
from optimize.diffusion.backend import open_runner
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.errors import ArtifactError, UserError
from optimize.exporters.onnx import Onnx
from optimize.exporters.triton import Triton
from optimize.passes.quantize import Quantize
from optimize.serving import _repository
from optimize.serving._pbtxt import Port
from optimize.serving._repository import Serving, engines, write_repository
from optimize.serving.triton import make_repository
from optimize.sources.diffusers import DiffusersSource
from optimize.storage.commit import commit
from optimize.storage.trust import verify


@pytest.fixture(scope="module")
def protobuf() -> ModuleType:
    """tritonclient's messages, loaded by path: the package around them would want grpcio."""
    found = importlib.util.find_spec("tritonclient")
    assert found and found.submodule_search_locations, "tritonclient is not installed: pip install -e .[dev]"
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def artifact(folder: Path, model: Model) -> Path:
    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        Onnx().export(model, temporary, Context())
        return {"id": "an id"}

    commit(folder, write)
    return folder


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: `final` guided, `int8` quantized."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    guided = DiffusersSource(tiny_folder, null_class=10).load(Sampler(steps=3, guidance=Guidance(cfg=0.5)))
    artifact(folder / "final", guided)
    artifact(folder / "int8", Quantize(samples=8, batch=8).apply(guided, Context())[0])
    return folder


def config(protobuf: ModuleType, folder: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), protobuf.ModelConfig())


def test_the_sampling_model_takes_seeds_and_gives_images(protobuf: ModuleType, run: Path, tmp_path: Path) -> None:
    serving = Serving(model="tiny", max_batch=8, preferred_batch=(8, 4), queue_delay_us=500, instances=2, threads=3)
    record = write_repository(run / "final", tmp_path, serving)
    assert record["models"] == {"tiny": "sampling", "tiny-onnx": "onnxruntime"}
    made = config(protobuf, tmp_path / "tiny")
    assert (made.name, made.backend, made.max_batch_size) == ("tiny", "python", 8)
    asked = {i.name: (protobuf.DataType.Name(i.data_type), list(i.dims), i.optional) for i in made.input}
    assert asked == {
        "seed": ("TYPE_INT64", [1], False),
        "label": ("TYPE_INT64", [1], True),
        "guidance": ("TYPE_FP64", [1], True),
    }
    given = {o.name: (protobuf.DataType.Name(o.data_type), list(o.dims)) for o in made.output}
    assert given == {"images": ("TYPE_FP32", [1, 16, 16]), "pixels": ("TYPE_UINT8", [16, 16, 1])}
    assert list(made.dynamic_batching.preferred_batch_size) == [4, 8]
    assert made.dynamic_batching.max_queue_delay_microseconds == 500
    assert made.instance_group[0].count == 2 and made.instance_group[0].kind == protobuf.ModelInstanceGroup.KIND_CPU
    assert made.parameters["threads"].string_value == "3" and made.version_policy.latest.num_versions == 1
    assert sorted(p.name for p in (tmp_path / "tiny" / "1").iterdir()) == ["model.onnx", "model.py", "sampler.json", "sampling"]  # fmt: skip


def test_a_loop_over_the_servers_own_network_holds_no_file_of_it(
    protobuf: ModuleType, run: Path, tmp_path: Path
) -> None:
    write_repository(run / "final", tmp_path, Serving(model="m", over="onnxruntime", max_batch=6))
    said = config(protobuf, tmp_path / "m").parameters
    about = {k: said[k].string_value for k in said}
    assert about == {
        "over": "m-onnx", "output": "out_sample", "largest": "6",
        "latents": "sample", "time": "timestep", "pixels": "yes",
    }  # fmt: skip
    assert not (tmp_path / "m" / "1" / "model.onnx").exists() and (tmp_path / "m-onnx" / "1" / "model.onnx").is_file()
    with pytest.raises(ArtifactError, match="no engine of the module tensorrt"):
        write_repository(run / "final", tmp_path / "b", Serving(over="tensorrt"))


def test_the_network_model_has_the_files_own_names_types_and_shapes(
    protobuf: ModuleType, run: Path, tmp_path: Path
) -> None:
    write_repository(run / "final", tmp_path, Serving(models=("onnxruntime",), threads=2, device="cuda", versions=3))
    made = config(protobuf, tmp_path / "diffusion-onnx")
    assert (made.backend, made.platform, made.default_model_filename) == (
        "onnxruntime",
        "onnxruntime_onnx",
        "model.onnx",
    )
    asked = {i.name: (protobuf.DataType.Name(i.data_type), list(i.dims), i.HasField("reshape")) for i in made.input}
    assert asked == {
        "sample": ("TYPE_FP32", [1, 16, 16], False),
        "timestep": ("TYPE_FP32", [1], True),
        "class_labels": ("TYPE_INT64", [1], True),
    }
    assert [list(o.dims) for o in made.output] == [[1, 16, 16]]
    assert made.instance_group[0].kind == protobuf.ModelInstanceGroup.KIND_GPU
    assert made.version_policy.latest.num_versions == 3
    assert made.parameters["intra_op_thread_count"].string_value == "2"
    copied = tmp_path / "diffusion-onnx" / "1" / "model.onnx"
    assert copied.read_bytes() == (run / "final" / "onnx" / "model.onnx").read_bytes()


def test_engines_are_served_by_compute_capability_and_profile(protobuf: ModuleType, run: Path, tmp_path: Path) -> None:
    for name in ("8.0-tensorrt-11.4", "sm86-tensorrt-11.4", "8.6-tensorrt_rtx-1.7.1"):
        folder = tmp_path / "made" / "tensorrt" / name
        folder.mkdir(parents=True)
        (folder / "model.engine").write_bytes(name.encode())
    (tmp_path / "made" / "onnx").symlink_to(run / "final" / "onnx")
    (tmp_path / "made" / "sampler.json").symlink_to(run / "final" / "sampler.json")
    assert list(engines(tmp_path / "made")) == ["8.0", "8.6"]
    serving = Serving(model="m", profiles=(0, 2), max_batch=4)
    assert write_repository(tmp_path / "made", tmp_path / "out", serving)["models"] == {"m": "sampling", "m-onnx": "onnxruntime", "m-tensorrt": "tensorrt"}  # fmt: skip
    made = config(protobuf, tmp_path / "out" / "m-tensorrt")
    assert (made.platform, made.max_batch_size) == ("tensorrt_plan", 4)
    assert dict(made.cc_model_filenames) == {"8.0": "model.sm80.plan", "8.6": "model.sm86.plan"}
    assert (tmp_path / "out" / "m-tensorrt" / "1" / "model.sm86.plan").read_bytes() == b"sm86-tensorrt-11.4"
    assert list(made.instance_group[0].profile) == ["0", "2"]
    assert made.instance_group[0].kind == protobuf.ModelInstanceGroup.KIND_GPU


def test_an_engines_record_gives_its_profiles_and_its_largest_batch(
    protobuf: ModuleType, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "made" / "tensorrt" / "8.0-tensorrt-11.4"
    folder.mkdir(parents=True)
    (folder / "model.engine").write_bytes(b"")
    shapes = [{"sample": {"min": [1, 1, 16, 16], "opt": [n, 1, 16, 16], "max": [n, 1, 16, 16]}} for n in (8, 1)]
    (folder / "engine.json").write_text(json.dumps({"profiles": shapes}))
    (tmp_path / "made" / "onnx").symlink_to(run / "final" / "onnx")
    write_repository(tmp_path / "made", tmp_path / "out", Serving(models=("tensorrt",), max_batch=8))
    made = config(protobuf, tmp_path / "out" / "diffusion-tensorrt")
    assert list(made.instance_group[0].profile) == ["0", "1"]
    with pytest.raises(UserError, match="max_batch 16 given, and the engines take batches up to 8"):
        write_repository(tmp_path / "made", tmp_path / "b", Serving(models=("tensorrt",)))
    with pytest.raises(UserError, match="profiles: 2 given, an engine has 0 to 1"):
        write_repository(tmp_path / "made", tmp_path / "c", Serving(models=("tensorrt",), max_batch=8, profiles=(0, 2)))


def with_engine(run: Path, tmp_path: Path, **record: Any) -> Path:
    """An artifact with an engine for SM 8.0 and its record."""
    folder = tmp_path / "made" / "tensorrt" / "8.0-tensorrt-11.4"
    folder.mkdir(parents=True)
    (folder / "model.engine").write_bytes(b"")
    (folder / "engine.json").write_text(
        json.dumps({"profiles": [], "flags": [], "hardware_compatible": False} | record)
    )
    (tmp_path / "made" / "onnx").symlink_to(run / "final" / "onnx")
    return tmp_path / "made"


@pytest.mark.parametrize("compatible", [True, False])
def test_an_engine_for_every_gpu_is_the_one_of_gpus_that_are_not_named(
    protobuf: ModuleType, run: Path, tmp_path: Path, compatible: bool
) -> None:
    made = with_engine(run, tmp_path, hardware_compatible=compatible)
    write_repository(made, tmp_path / "out", Serving(models=("tensorrt",)))
    written = config(protobuf, tmp_path / "out" / "diffusion-tensorrt")
    assert written.default_model_filename == ("model.sm80.plan" if compatible else "")
    assert dict(written.cc_model_filenames) == {"8.0": "model.sm80.plan"}


def test_an_engine_without_weights_is_not_served(run: Path, tmp_path: Path) -> None:
    made = with_engine(run, tmp_path, flags=["strip_weights"])
    with pytest.raises(
        ArtifactError, match=r"engine for SM 8\.0 holds no weights, and Triton puts none into it\. Build it"
    ):
        write_repository(made, tmp_path / "out", Serving(models=("tensorrt",)))


@pytest.mark.parametrize(("flags", "options"), [(["version_compatible"], 1), ([], 0)])
def test_a_version_compatible_engine_wants_an_option_of_the_server(
    run: Path, tmp_path: Path, flags: list[str], options: int
) -> None:
    made = with_engine(run, tmp_path, flags=flags)
    found = write_repository(made, tmp_path / "out", Serving(models=("tensorrt",)))["server"]
    assert found == ["--backend-config=tensorrt,version-compatible=true"][:options]
    assert write_repository(made, tmp_path / "other", Serving(models=("onnxruntime",)))["server"] == []


def test_an_artifact_without_engines_says_which_there_are(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no engine of the module tensorrt under tensorrt/"):
        write_repository(run / "final", tmp_path / "a", Serving(models=("tensorrt",)))
    folder = tmp_path / "rtx" / "tensorrt" / "8.6-tensorrt_rtx-1.7.1"
    folder.mkdir(parents=True)
    (folder / "model.engine").write_bytes(b"")
    (tmp_path / "rtx" / "onnx").symlink_to(run / "final" / "onnx")
    with pytest.raises(ArtifactError, match=r"There are 8.6-tensorrt_rtx-1.7.1, for another runtime"):
        write_repository(tmp_path / "rtx", tmp_path / "b", Serving(models=("tensorrt",)))


def test_a_network_of_a_fixed_batch_is_not_batched_and_has_no_loop(
    protobuf: ModuleType, run: Path, tmp_path: Path
) -> None:
    import onnx

    fixed = onnx.load(run / "final" / "onnx" / "model.onnx")
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    (tmp_path / "made" / "onnx").mkdir(parents=True)
    onnx.save(fixed, tmp_path / "made" / "onnx" / "model.onnx")
    (tmp_path / "made" / "sampler.json").symlink_to(run / "final" / "sampler.json")
    write_repository(tmp_path / "made", tmp_path / "out", Serving(models=("onnxruntime",)))
    made = config(protobuf, tmp_path / "out" / "diffusion-onnx")
    assert made.max_batch_size == 0 and not made.HasField("dynamic_batching")
    assert [list(i.dims) for i in made.input] == [[2, 1, 16, 16], [2], [2]]
    with pytest.raises(UserError, match="the network's batch is fixed"):
        write_repository(tmp_path / "made", tmp_path / "other", Serving())


LOAD = """
import json, sys
for name in ("optimize", "torch", "pydantic"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import model as served
import numpy as np
from pathlib import Path
from sampling.loop import Asked, Loop
folder = Path(sys.argv[1])
loop = Loop(json.loads((folder / "sampler.json").read_text()), served.network(folder / "model.onnx", "cpu", 1, 0))
np.save(sys.argv[2], loop.draw(Asked(np.arange(6))))
"""


@pytest.mark.parametrize("name", ["final", "int8"])
def test_the_served_files_alone_draw_the_librarys_images_bit_for_bit(run: Path, tmp_path: Path, name: str) -> None:
    """In a process without this library and torch; the library draws with its ONNX Runtime runner, the same batch."""
    from optimize.architectures.artifact import load_model

    record = write_repository(run / name, tmp_path / "repository", Serving(model="m"))
    assert bool(record["lowered"]) == (name == "int8")
    version = tmp_path / "repository" / "m" / "1"
    subprocess.run([sys.executable, "-c", LOAD, str(version), str(tmp_path / "x.npy")], check=True, timeout=120)
    with open_runner(run / name, "onnxruntime", threads=1) as runner:
        expected = load_model(run / name).with_network(runner).sample(range(6)).numpy()
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected)


def test_as_is_keeps_the_quantized_graph(run: Path, tmp_path: Path) -> None:
    assert write_repository(run / "int8", tmp_path, Serving(int8="as_is"))["lowered"] == []
    served = tmp_path / "diffusion" / "1" / "model.onnx"
    assert served.read_bytes() == (run / "int8" / "onnx" / "model.onnx").read_bytes()


def test_a_repository_of_a_run_is_named_after_it_and_verified(run: Path, tmp_path: Path) -> None:
    manifest = make_repository(run, tmp_path / "models", max_batch=4)
    assert list(manifest["triton"]["models"]) == ["tiny", "tiny-onnx"] and manifest["id"] == "an id"
    assert verify(tmp_path / "models")["serving"]["max_batch"] == 4
    again = make_repository(run / "int8", tmp_path / "models")  # one of ours is replaced
    assert list(again["triton"]["models"]) == ["tiny-int8", "tiny-int8-onnx"]


def test_a_folder_with_other_files_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files\. Give a new folder"):
        make_repository(run, tmp_path)
    with pytest.raises(UserError, match="holds other files"):
        make_repository(run, run / "final")  # an artifact is no repository
    assert (tmp_path / "mine.txt").read_text() == "mine" and (run / "final" / "onnx" / "model.onnx").is_file()


def test_an_altered_artifact_is_not_served(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "final", tmp_path / "final")
    path = tmp_path / "final" / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"onnx/model.onnx is changed"):
        make_repository(tmp_path / "final", tmp_path / "models")
    assert not (tmp_path / "models").exists()


FOLDER = "tensorrt/8.0-tensorrt-11.4"


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with every file that a repository may take."""

    def write(temporary: Path) -> dict[str, Any]:
        shutil.copytree(run / "final", temporary, dirs_exist_ok=True)
        (temporary / FOLDER).mkdir(parents=True)
        (temporary / FOLDER / "model.engine").write_bytes(b"plan" * 8)
        (temporary / FOLDER / "engine.json").write_text(json.dumps({"profiles": []}) + " " * 16)
        return {"id": "an id"}

    folder = tmp_path_factory.mktemp("whole") / "final"
    commit(folder, write)
    return folder


@pytest.mark.parametrize("name", ["onnx/model.onnx", "sampler.json", f"{FOLDER}/model.engine", f"{FOLDER}/engine.json"])
def test_what_differs_from_the_manifest_is_neither_read_nor_copied(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path / "final")
    serving = Serving(models=("sampling", "onnxruntime", "tensorrt"))
    write_repository(tmp_path / "final", tmp_path / "sound", serving)
    path = tmp_path / "final" / name
    found = path.read_bytes()
    altered = found[:-9] + bytes([found[-9] ^ 1]) + found[-8:]
    path.write_bytes(altered)
    with pytest.raises(ArtifactError, match=rf"{name} is changed: expected sha256"):
        write_repository(tmp_path / "final", tmp_path / "out", serving)
    assert altered not in [p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()]
    with pytest.raises(ArtifactError, match=rf"{name} is changed"):
        make_repository(tmp_path / "final", tmp_path / "models", models=("sampling",))
    assert not (tmp_path / "models").exists()


def test_a_file_that_the_manifest_does_not_name_is_not_copied(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "final", tmp_path / "final")
    (tmp_path / "final" / "onnx" / "added.bin").write_bytes(b"added")
    write_repository(tmp_path / "final", tmp_path / "out", Serving())
    assert not list((tmp_path / "out").rglob("added.bin"))
    with pytest.raises(ArtifactError, match=r"onnx/added.bin is added"):
        make_repository(tmp_path / "final", tmp_path / "models")


def test_a_network_told_tensors_takes_them_from_the_client_or_from_what_is_kept(
    protobuf: ModuleType, tmp_path: Path
) -> None:
    """A tiny Stable Diffusion U-Net, with the conditions of its artifact and without."""
    bare = networks.model(networks.TINY["sd"], Sampler(steps=1, guidance=Guidance(cfg=2.0)))
    rows = {"encoder_hidden_states": torch.randn(3, 7, 32), "null.encoder_hidden_states": torch.randn(1, 7, 32)}
    for name, model in (("bare", bare), ("told", replace(bare, conditions=rows))):
        write_repository(artifact(tmp_path / name, model), tmp_path / f"{name}-models", Serving(model="m"))
        made = config(protobuf, tmp_path / f"{name}-models" / "m")
        ports = {i.name: (list(i.dims), i.optional) for i in made.input}
        assert ports == {
            "seed": ([1], False),
            "guidance": ([1], True),
            "encoder_hidden_states": ([-1, 32], name == "told"),
            "null.encoder_hidden_states": ([-1, 32], True),
        }
        assert [(o.name, list(o.dims)) for o in made.output] == [("images", [4, 16, 16])]  # latents are no pixels
        kept = tmp_path / f"{name}-models" / "m" / "1" / "conditions.npz"
        assert kept.is_file() == (name == "told")
    with np.load(kept, allow_pickle=False) as found:
        assert all(np.array_equal(found[name], rows[name].numpy()) for name in rows)


def test_a_network_with_shared_inputs_is_drawn_from_in_a_session_alone() -> None:
    model = networks.model(networks.TINY["flux"], Sampler(steps=1))
    about, shared = sampler_json(model), ("img_ids", "txt_ids")
    inputs = [
        Port(name=s.name, type="TYPE_FP32", dims=(-1, 3), first="S" if s.name in shared else "B") for s in model.inputs
    ]
    kept = {"img_ids": np.zeros((64, 3)), "txt_ids": np.zeros((7, 3))}
    assert _repository._problems(about, kept, inputs, inputs[:1], Serving()) == []
    (said,) = _repository._problems(about, kept, inputs, inputs[:1], Serving(over="onnxruntime"))
    assert "all samples share its img_ids, txt_ids, which a server cannot stack. Use over: session" in said
    (said,) = _repository._problems(about, {}, inputs, inputs[:1], Serving())
    assert "nothing says what img_ids, txt_ids are. Give them in the source's conditions" in said
    asked, given = _repository._ports(about, kept)
    ports = {port.name: port.optional for port in asked}
    assert ports["guidance"] is False and "img_ids" not in ports and given[0].dims == (-1, 64, 16) and len(given) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_batch": 0}, "max_batch: Input should be greater than or equal to 1, given 0"),
        ({"model": "a/b"}, "model: String should match pattern"),
        ({"device": "tpu"}, "device: Input should be 'cpu' or 'cuda', given 'tpu'"),
        ({"preferred_batch": (32,)}, "preferred_batch: 32 is above max_batch 16"),
        (
            {"models": ("sampling",), "over": "onnxruntime"},
            "over: onnxruntime is not among the models. Add it: [sampling, onnxruntime]",
        ),
    ],
)
def test_options_that_will_not_do_are_named(run: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="serve: ") as raised:
        make_repository(run, tmp_path / "models", **options)
    assert said in str(raised.value) and not (tmp_path / "models").exists()


def test_an_artifact_without_onnx_or_with_an_unknown_solver_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(ArtifactError, match="Export the artifact first"):
        write_repository(tmp_path / "bare", tmp_path / "a", Serving())
    (tmp_path / "bare" / "onnx").symlink_to(run / "final" / "onnx")
    about = json.loads((run / "final" / "sampler.json").read_text())
    about["sampler"]["solver"] = "euler_a"
    (tmp_path / "bare" / "sampler.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r'solver "euler_a" is not known\. Allowed: ddim, heun, dpmpp_2m, ipndm'):
        write_repository(tmp_path / "bare", tmp_path / "b", Serving())
    with pytest.raises(ArtifactError, match="neither an artifact nor a run with a final one"):
        make_repository(tmp_path, tmp_path / "c")
    with pytest.raises(ArtifactError, match="is no folder"):
        make_repository(tmp_path / "nowhere", tmp_path / "c")


def test_a_type_triton_has_no_name_of_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    value = [helper.make_tensor_value_info(n, TensorProto.COMPLEX64, ["B", 2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"x is COMPLEX64, which Triton cannot take\. Allowed: FLOAT"):
        _repository.ports(tmp_path / "model.onnx")


def test_the_exporter_writes_the_repository_into_the_artifact(run: Path, tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Put onnx before it"):
        Triton().export(tiny_model, tmp_path, Context())
    Onnx().export(tiny_model, tmp_path, Context())
    save_model(tmp_path, tiny_model)
    record = Triton(model="mine").export(tiny_model, tmp_path, Context())
    assert record["folder"] == "triton" and list(record["models"]) == ["mine", "mine-onnx"]
    assert (tmp_path / "triton" / "mine" / "config.pbtxt").is_file()
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Triton(max_batch=0)
