"""A Triton model repository from an artifact: the raw network for Triton's own backends, and the whole sampling loop.

<name>/            seeds in, images out: Triton's Python backend, which needs numpy and onnxruntime
<name>-onnx/       one evaluation of the network: onnxruntime backend
<name>-tensorrt/   the same as engines, one for each SM: tensorrt backend
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from optimize import rng
from optimize.architectures.artifact import CONDITIONS
from optimize.configs import Config
from optimize.diffusion import solvers
from optimize.errors import ArtifactError, UserError
from optimize.onnx.check import check_onnx
from optimize.onnx.vetted import onnx_file
from optimize.serving import _loop, _model
from optimize.serving._pbtxt import TYPES, Port, Word, batched, parameters, text
from optimize.storage.trust import MANIFEST, checked
from optimize.storage.weights import read_json, read_tensors

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["sampling", "onnxruntime", "tensorrt"]
SUFFIX = {"sampling": "", "onnxruntime": "-onnx", "tensorrt": "-tensorrt"}
ENGINE = re.compile(r"(?:sm)?_?(?P<major>\d+)\.?(?P<minor>\d)-(?P<module>[a-z_]+)-(?P<version>[\w.]+)$")
COPIES = {_model: "model.py", _loop: "sampling/loop.py", solvers: "sampling/solvers.py", rng: "sampling/rng.py"}
IMPORTS = {  # in the copies, what was this package is the folder `sampling` beside model.py
    "from optimize.serving._loop import": "from sampling.loop import",
    "from optimize.diffusion.solvers import": "from sampling.solvers import",
    "from optimize.rng import": "from sampling.rng import",
}
PATHS = (
    "import sys\nfrom pathlib import Path\n\nsys.path.insert(0, str(Path(__file__).parent))  # the folder `sampling`\n"
)


class Serving(Config):
    """How a server runs the model."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "diffusion"
    """Name that clients call the model by."""
    models: Annotated[tuple[Kind, ...], Field(min_length=1)] | None = None
    """Models that are written; by default sampling and onnxruntime, and tensorrt where the artifact holds engines."""
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 16
    """Images of one execution at most."""
    preferred_batch: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Batch sizes that are run at once; by default any."""
    queue_delay_us: Annotated[int, Field(ge=0)] = 2000
    """Microseconds a request may wait for others."""
    instances: Annotated[int, Field(ge=1)] = 1
    """Copies that run at a time, on each GPU or on the CPU."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of an instance; by default one for each core."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the ONNX file runs; engines always run on a GPU."""
    over: Literal["session", "onnxruntime", "tensorrt"] = "session"
    """What evaluates the network in the sampling loop: an ONNX Runtime session of its own, or that other model."""
    versions: Annotated[int, Field(ge=1)] = 1
    """Newest versions that a server loads."""
    profiles: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """An engine's optimization profiles in use; by default all that its record names."""
    int8: Literal["widen", "as_is"] = "widen"
    """Q/DQ layers on the CPU: computed in FP32, or as the file says, as in the onnxruntime runner."""

    @model_validator(mode="after")
    def _fits(self) -> Serving:
        if self.models and "sampling" in self.models and self.over not in ("session", *self.models):
            raise ValueError(
                f"over: {self.over} is not among the models. Add it: [{', '.join([*self.models, self.over])}]"
            )
        if any(size > self.max_batch for size in self.preferred_batch):
            raise ValueError(f"preferred_batch: {max(self.preferred_batch)} is above max_batch {self.max_batch}")
        return self


def write_repository(artifact: Path, out: Path, serving: Serving) -> dict[str, Any]:
    """Write the repository of the artifact's exported network into the empty or new folder `out`.

    Returns {models: {name: kind}, max_batch, lowered, server: options that Triton wants}. Every file is compared with the artifact's manifest before it is
    read or copied. Raises ArtifactError where one differs or what a model needs is lacking, UserError for a sampling
    loop that is not known.
    """
    path = onnx_file(artifact)
    inputs, outputs = ports(path)
    kinds = serving.models or _kinds(artifact, serving)
    made, lowered = {}, []
    for kind in kinds:
        name = serving.model + SUFFIX[kind]
        version = out / name / "1"
        version.mkdir(parents=True)
        if kind == "tensorrt":
            fields = _engines(artifact, version, inputs, outputs, serving)
        elif kind == "onnxruntime" or serving.over == "session":
            lowered = _network(path, version / "model.onnx", serving)
            fields = _onnx(inputs, outputs, serving)
        if kind == "sampling":
            fields = _sampling(artifact, version, inputs, outputs, serving)
        (version.parent / "config.pbtxt").write_text(text({"name": name, **fields}) + "\n")
        made[name] = kind
    options = server_options(artifact, kinds)
    return {"models": made, "max_batch": serving.max_batch, "lowered": lowered, "server": options}


def own(artifact: Path, name: str) -> Path:
    """A file of the artifact with the bytes its manifest names (ArtifactError otherwise), or, of one that is still being
    written and has no manifest, the file."""
    return checked(artifact, name) if os.path.lexists(artifact / MANIFEST) else artifact / name


def _kinds(artifact: Path, serving: Serving) -> tuple[Kind, ...]:
    """Sampling and onnxruntime, and tensorrt where it is asked for or there are engines."""
    if serving.over == "tensorrt" or engines(artifact):
        return ("sampling", "onnxruntime", "tensorrt")
    return ("sampling", "onnxruntime")


def ports(path: Path) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of an ONNX file; its weights are not read. ArtifactError for a type Triton has no name of."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {i.name for i in graph.initializer}
    return [_port(v, path) for v in graph.input if v.name not in weights], [_port(v, path) for v in graph.output]


def _port(value: Any, path: Path) -> Port:
    import onnx

    tensor = value.type.tensor_type
    type = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if type not in TYPES:
        raise ArtifactError(f"{path}: {value.name} is {type}, which Triton cannot take. Allowed: {', '.join(TYPES)}.")
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    first = tensor.shape.dim[0].dim_param if dims and dims[0] == -1 else ""
    return Port(name=value.name, type=TYPES[type], dims=dims, first=first)


def _network(path: Path, to: Path, serving: Serving) -> list[str]:
    """Put the checked ONNX file, and its external files, at `to`, changed as the onnxruntime runner changes it; returns
    what was changed."""
    if serving.device == "cpu" and serving.int8 == "widen" and b"QuantizeLinear" in path.read_bytes():
        import onnx_ir as ir

        from optimize.onnx.lowering import widen

        graph = ir.load(path)
        said = widen(graph)
        large = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value) > 2_000_000_000
        ir.save(graph, to, external_data="model.onnx.data" if large else None)
        return said
    shutil.copyfile(path, to)
    for name in check_onnx(path):
        (to.parent / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, to.parent / name)
    return []


def _onnx(inputs: list[Port], outputs: list[Port], serving: Serving) -> dict[str, Any]:
    """One network evaluation in Triton's onnxruntime backend."""
    threads = {"intra_op_thread_count": str(serving.threads)} if serving.threads else {}
    return {"platform": "onnxruntime_onnx", "backend": "onnxruntime", "default_model_filename": "model.onnx"} | _common(
        inputs, outputs, serving, parameters(threads)
    )


def _common(
    inputs: list[Port], outputs: list[Port], serving: Serving, given: list[dict[str, Any]], gpu: bool = False
) -> dict[str, Any]:
    """Ports, batching, instances and versions, alike for every backend; a network without a free batch is not batched."""
    stacked = batched([*inputs, *outputs])
    batching: dict[str, Any] = {"max_queue_delay_microseconds": serving.queue_delay_us}
    if serving.preferred_batch:
        batching = {"preferred_batch_size": sorted(serving.preferred_batch)} | batching
    group: dict[str, Any] = {"count": serving.instances, "kind": Word("KIND_CPU")}
    if gpu or serving.device == "cuda":
        group["kind"] = Word("KIND_GPU")
    return {
        "max_batch_size": serving.max_batch if stacked else 0,
        "input": [port.fields(stacked) for port in inputs],
        "output": [port.fields(stacked) for port in outputs],
        **({"dynamic_batching": batching} if stacked else {}),
        "instance_group": [group],
        "version_policy": {"latest": {"num_versions": serving.versions}},
        **({"parameters": given} if given else {}),
    }


def engines(artifact: Path) -> dict[str, Path]:
    """{compute capability, e.g. "8.6": engine} of the plans in an artifact that Triton's TensorRT backend can load; those
    of TensorRT-RTX are for another runtime."""
    found = {}
    for path in sorted(artifact.glob("tensorrt/*/model.engine")):
        named = ENGINE.match(path.parent.name)
        if named and named["module"] == "tensorrt":
            found[f"{named['major']}.{named['minor']}"] = path
    return found


def _engines(
    artifact: Path, version: Path, inputs: list[Port], outputs: list[Port], serving: Serving
) -> dict[str, Any]:
    """One file for each compute capability; the server takes its GPU's."""
    plans, files = engines(artifact), {}
    if not plans:
        others = sorted(p.parent.name for p in artifact.glob("tensorrt/*/model.engine"))
        there = f" There are {', '.join(others)}, for another runtime." if others else ""
        raise ArtifactError(
            f"{artifact}: no engine of the module tensorrt under tensorrt/, which is what Triton loads.{there} Build one first."
        )
    records = records_of(artifact, plans)
    stripped = [c for c, record in records.items() if "strip_weights" in record.get("flags", ())]
    if stripped:
        raise ArtifactError(
            f"{artifact}: the engine for SM {', '.join(stripped)} holds no weights, and Triton puts none into it. Build it again without strip_weights."
        )
    for capability, path in plans.items():
        files[capability] = f"model.sm{capability.replace('.', '')}.plan"
        shutil.copyfile(own(artifact, path.relative_to(artifact).as_posix()), version / files[capability])
    fields = _common(inputs, outputs, serving, [], gpu=True)
    fields["instance_group"][0]["profile"] = [str(p) for p in _profiles(list(records.values()), serving)]
    names = [{"key": capability, "value": file} for capability, file in files.items()]
    for_all = next((files[c] for c, record in records.items() if record.get("hardware_compatible")), None)
    rest = {"default_model_filename": for_all} if for_all else {}  # of GPUs whose capability is not named
    return {"platform": "tensorrt_plan", "backend": "tensorrt", **rest, "cc_model_filenames": names} | fields


def records_of(artifact: Path, plans: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The records beside engines, by compute capability; without those that have none."""
    places = {c: path.parent.relative_to(artifact) / "engine.json" for c, path in plans.items()}
    return {c: read_json(own(artifact, p.as_posix())) for c, p in places.items() if (artifact / p).is_file()}


def server_options(artifact: Path, kinds: Sequence[Kind]) -> list[str]:
    """What Triton must be started with for these models: its TensorRT backend runs version-compatible engines where it is
    told to alone, since they bring code for the CPU."""
    records = records_of(artifact, engines(artifact)).values() if "tensorrt" in kinds else ()
    needed = any("version_compatible" in record.get("flags", ()) for record in records)
    return ["--backend-config=tensorrt,version-compatible=true"] if needed else []


def _profiles(found: Sequence[dict[str, Any]], serving: Serving) -> tuple[int, ...]:
    """The profiles in use, from the engines' records; UserError for one that is not there, or where max_batch is above
    what they take."""
    records = [record["profiles"] for record in found if record["profiles"]]
    used = serving.profiles or tuple(range(min((len(r) for r in records), default=1)))
    for record in records:
        if max(used) >= len(record):
            raise UserError(f"triton: profiles: {max(used)} given, an engine has 0 to {len(record) - 1}.")
        inputs = [shapes for i, profile in enumerate(record) if i in used for shapes in profile.values()]
        largest = max((shapes["max"][0] for shapes in inputs), default=serving.max_batch)
        if largest < serving.max_batch:
            raise UserError(
                f"triton: max_batch {serving.max_batch} given, and the engines take batches up to {largest}. Give max_batch {largest}, or build engines for more."
            )
    return used


def _sampling(
    artifact: Path, version: Path, inputs: list[Port], outputs: list[Port], serving: Serving
) -> dict[str, Any]:
    """The loop as a Python model: seed, and where the model has them label, guidance and tensors, to images."""
    about = read_json(own(artifact, "sampler.json"))
    kept = conditions(artifact, about)
    problems = _problems(about, kept, inputs, outputs, serving)
    if problems:
        raise UserError(f"triton: the sampling loop cannot draw from {artifact}: {'; '.join(problems)}.")
    (version / "sampler.json").write_text(json.dumps(about, indent=1) + "\n")
    if kept:
        _save(version / _model.KEPT, kept)
    write_code(version)
    asked, given = _ports(about, kept)
    said = {"latents": inputs[0].name, "time": inputs[1].name, "pixels": "yes" if len(given) > 1 else "no"}
    if serving.over == "session":
        said |= {"over": "session", "device": serving.device, "threads": str(serving.threads or 0)}
    else:
        name = serving.model + SUFFIX[serving.over]
        said |= {"over": name, "output": outputs[0].name, "largest": str(serving.max_batch)}
    return {"backend": "python"} | _common(asked, given, serving, parameters(said))


def _problems(
    about: dict[str, Any], kept: dict[str, np.ndarray], inputs: list[Port], outputs: list[Port], serving: Serving
) -> list[str]:
    """Why the loop cannot be served."""
    found = _loop.refusals(about, [port.name for port in inputs])
    if any(not port.dims or port.dims[0] != -1 for port in (*inputs[:2], *outputs)):
        found.append("the network's batch is fixed, and the loop draws batches of any size")
    shared = [t["name"] for t in about["conditioning"].get("tensors", ()) if not _loop.batched(t)]
    if shared and serving.over != "session":
        found.append(f"all samples share its {', '.join(shared)}, which a server cannot stack. Use over: session")
    lacking = [name for name in shared if name not in kept]
    if lacking:
        found.append(f"nothing says what {', '.join(lacking)} are. Give them in the source's conditions")
    return found


def conditions(artifact: Path, about: dict[str, Any]) -> dict[str, np.ndarray]:
    """The conditions that lie with the model, by name of the network's input: the artifact's own, and constants. Normal
    numbers, which stand in for text in measurements, are none."""
    from optimize.diffusion.network import TensorSpec, stand_in

    kept = {}
    for value in about["conditioning"].get("tensors", ()):
        spec = TensorSpec.from_json(value)
        if spec.fill != "normal":
            kept[spec.name] = stand_in(spec, spec.shape(1)).astype(spec.dtype)
    if (artifact / CONDITIONS).is_file():
        kept |= {name: tensor.numpy() for name, tensor in read_tensors(own(artifact, CONDITIONS)).items()}
    return kept


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import numpy as np

    np.savez(path, **arrays)  # type: ignore[arg-type]


def _ports(about: dict[str, Any], kept: dict[str, np.ndarray]) -> tuple[list[Port], list[Port]]:
    """What a client sends and gets: one seed an image; samples as they are drawn, and of pictures HWC uint8."""
    conditioning, shape = about["conditioning"], tuple(about["shape"])
    told = [t for t in conditioning.get("tensors", ()) if _loop.batched(t)]
    asked = [Port(name="seed", type="TYPE_INT64", dims=(-1, 1))]
    if conditioning["kind"] == "class":
        asked.append(Port(name="label", type="TYPE_INT64", dims=(-1, 1), optional=True))
    folded = about["sampler"]["guidance"]["folded"] is not None
    if _loop.guidable(conditioning) and not folded and "guidance" not in [t["name"] for t in told]:
        asked.append(Port(name="guidance", type="TYPE_FP64", dims=(-1, 1), optional=True))
    for tensor in told:
        asked.append(_told(tensor, tensor["name"], tensor["name"] in kept))
        if tensor["name"] in conditioning.get("nulled", ()) and not folded:
            asked.append(_told(tensor, _loop.NULL + tensor["name"], True))
    given = [Port(name="images", type="TYPE_FP32", dims=(-1, *shape))]
    if about["limit"] == 1.0 and len(shape) == 3:
        given.append(Port(name="pixels", type="TYPE_UINT8", dims=(-1, *shape[1:], shape[0])))
    return asked, given


def _told(tensor: dict[str, Any], name: str, optional: bool) -> Port:
    """An input for a tensor that the network is told, as sampler.json describes it."""
    dims = tuple(-1 if isinstance(d, str) else d for d in tensor["dims"])
    kind = {"int64": "TYPE_INT64"}.get(tensor.get("dtype", "float32"), "TYPE_FP32")
    return Port(name=name, type=kind, dims=dims, optional=optional)


def write_code(version: Path) -> None:
    """The files of the loop, with nothing of this package left in them."""
    (version / "sampling").mkdir()
    (version / "sampling" / "__init__.py").write_text("")
    for source, name in COPIES.items():
        code = inspect.getsource(source)
        for ours, theirs in IMPORTS.items():
            code = code.replace(ours, theirs)
        if name == "model.py":
            code = code.replace("import json\nfrom pathlib import Path\n", f"import json\n{PATHS}", 1)
        (version / name).write_text(code)
