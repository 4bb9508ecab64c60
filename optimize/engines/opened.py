"""What both TensorRT runners share: finding the engine that fits this machine, and a Network around its session.

The manifest and the record are checked before anything is deserialized. Never run on a GPU so far: unverified.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from optimize.configs import Config
from optimize.diffusion.backend import Closing
from optimize.diffusion.network import TensorSpec
from optimize.engines import cuda, libraries, memory
from optimize.engines.builder import EngineError
from optimize.engines.make import ENGINE, RECORD
from optimize.engines.session import Session, choose
from optimize.errors import ArtifactError, EnvironmentLacks, UserError
from optimize.onnx.vetted import ONNX_FILE, onnx_file
from optimize.storage.trust import checked, read_manifest
from optimize.storage.weights import read_json

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "tensorrt"


class EngineOptions(Config):
    """Options of both runners."""

    device: Literal["cuda"] = "cuda"
    """Engines run on the first visible GPU."""
    io: Literal["host", "device"] = "host"
    """Where inputs come from and outputs go; device: torch's CUDA tensors."""
    cuda_graphs: bool = False
    """Capture a call once for every set of input shapes, then replay it."""
    weights_gb: Annotated[float, Field(ge=0)] | None = None
    """Of an engine with streamed weights: GB of them that stay on the GPU; by default as many as TensorRT thinks
    fit."""
    any_gpu: bool = False
    """Try an engine that was built for another SM, instead of refusing it."""


def open_engine(folder: Path, module: str, options: EngineOptions) -> EngineRunner:
    """The engine of an artifact that this GPU and this version of the module run.

    Raises ArtifactError where there is none or its bytes are not the manifest's, EnvironmentLacks without the module or
    a GPU, and for an engine of another GPU or version; all before anything is deserialized."""
    engines = records(folder, module)
    installed = libraries.found_version(module)
    if installed is None:
        libraries.load_module(module)
    try:
        device = cuda.Cuda()
    except cuda.CudaError as error:
        raise EnvironmentLacks(f"runner {module}: {error} Engines run on NVIDIA GPUs alone.") from error
    if options.io == "device":
        _check_torch(module)
    chosen = fitting(engines, module, str(installed), device.sm(), options.any_gpu)
    record = engines[chosen]
    about = {
        "flags": record["flags"],
        "onnx": weights_of(folder, chosen, record),
        "resident": resident(options, record),
    }
    plan = checked_plan(folder, chosen, record).read_bytes()
    try:
        session = Session(libraries.load_module(module), plan, device, options.cuda_graphs, **about)
    except (EngineError, cuda.CudaError) as error:
        if memory.ran_out(str(error)):
            raise _too_little(module, error) from error
        raise ArtifactError(f"{chosen / ENGINE}: {error} Build it again: optimize export.") from error
    return EngineRunner(session, record, options, device)


def records(folder: Path, module: str) -> dict[Path, dict[str, Any]]:
    """Records of an artifact's engines of this module, by folder; ArtifactError where there are none."""
    named = sorted(n for n in read_manifest(folder)["files"] if PurePosixPath(n).match(f"{FOLDER}/*/{RECORD}"))
    found = {(folder / name).parent: read_json(checked(folder, name)) for name in named}
    mine = {place: record for place, record in found.items() if record["module"] == module}
    if not mine:
        raise ArtifactError(
            f"{folder / FOLDER}: no engine of {libraries.TITLES[module]}. Build one first: optimize export {quote(str(folder))} --target here"
        )
    return mine


def fitting(
    engines: dict[Path, dict[str, Any]], module: str, installed: str, sm: tuple[int, int], any_gpu: bool = False
) -> Path:
    """Folder of the engine for this GPU and version; EnvironmentLacks saying what each engine is for."""
    right = [p for p, r in engines.items() if version_fits(r, installed) and (any_gpu or gpu_fits(r, sm))]
    if right:
        return min(right, key=lambda p: (engines[p]["sm"] != libraries.sm_text(sm), engines[p]["version"] != installed))
    held = ", ".join(f"SM {r['sm']} by {r['module']} {r['version']}" for r in engines.values())
    raise EnvironmentLacks(
        f"runner {module}: the artifact's engines are for {held}; here is SM {libraries.sm_text(sm)} with {module} {installed}. Engines run on the GPU class and the version they were built for: build one for this machine with optimize export --target here."
    )


def version_fits(record: dict[str, Any], installed: str) -> bool:
    """The very version, or a newer one of the same major for a version-compatible engine."""
    if record["version"] == installed:
        return True
    built, here = libraries.release(record["version"]), libraries.release(installed)
    return "version_compatible" in record["flags"] and built[0] == here[0] and built <= here


def gpu_fits(record: dict[str, Any], sm: tuple[int, int]) -> bool:
    """The very SM, or any from 8.0 on for a hardware-compatible engine."""
    return record["sm"] == libraries.sm_text(sm) or (record["hardware_compatible"] and sm >= (8, 0))


def checked_plan(folder: Path, engine: Path, record: dict[str, Any]) -> Path:
    """The plan of an engine; ArtifactError unless its bytes are those that the manifest and the record name."""
    name = (engine / ENGINE).relative_to(folder).as_posix()
    path = checked(folder, name)
    if read_manifest(folder)["files"][name]["sha256"] != record["sha256"]:
        raise ArtifactError(f"{engine}: the record is of another engine; it is not loaded. Build it again.")
    return path


def weights_of(folder: Path, engine: Path, record: dict[str, Any]) -> str:
    """Path of the ONNX file that an engine without weights gets them from, "" where it has them; ArtifactError unless its
    bytes are those the engine was built from."""
    if "strip_weights" not in record["flags"]:
        return ""
    path, files = onnx_file(folder), read_manifest(folder)["files"]
    for name, digest in record["onnx"].items():
        held = files.get((PurePosixPath(ONNX_FILE).parent / name).as_posix(), {})
        if held.get("sha256") != digest:
            raise ArtifactError(
                f"{engine}: it holds no weights, and {name} is not the file it was built from. Build it again."
            )
    return str(path)


def resident(options: EngineOptions, record: dict[str, Any]) -> int | None:
    """Bytes of streamed weights asked to stay on the GPU; UserError for an engine that streams none."""
    if options.weights_gb is None:
        return None
    if "stream_weights" not in record["flags"]:
        raise UserError(
            f"runner {record['module']}: weights_gb {options.weights_gb:g} given, and the engine was built to keep all weights on the GPU. Build it with stream_weights, or leave weights_gb out."
        )
    return int(options.weights_gb * 1e9)


def _check_torch(module: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentLacks(
            f"runner {module}: io device takes torch's CUDA tensors, and torch {torch.__version__} sees no CUDA device. Install a CUDA build of torch, or use io host."
        )


class EngineRunner(Closing):
    """A Network around a session: host tensors through numpy, CUDA tensors by their addresses."""

    def __init__(self, session: Session, record: dict[str, Any], options: EngineOptions, device: Any) -> None:
        self._held, self._record, self._options = session, record, options
        self._gpu = {"name": device.name(), "sm": libraries.sm_text(device.sm())}
        self.inputs = tuple(_spec(session, name) for name in session.inputs)

    def __call__(self, **tensors: Tensor) -> Tensor:
        """The raw output where the inputs lie, float32; UserError for shapes outside every profile, naming them all."""
        session: Session = self.held
        shapes = {n: tuple(tensors[n].shape) for n in session.inputs}
        try:
            choose(session.profiles, shapes)
            return (self._on_gpu if tensors[session.inputs[0]].is_cuda else self._on_host)(session, tensors, shapes)
        except (EngineError, cuda.CudaError) as error:
            if memory.ran_out(str(error)):
                raise _too_little(self._record["module"], error) from error
            raise UserError(f"runner {self._record['module']}: {error}") from error

    def _on_host(self, session: Session, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> Tensor:
        import torch

        arrays = {n: tensors[n].detach().numpy() for n in shapes}
        return torch.from_numpy(session.run(arrays)).float()

    def _on_gpu(self, session: Session, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> Tensor:
        import torch

        kinds = {n: getattr(torch, str(session.dtypes[n])) for n in (*shapes, session.output)}
        fed = {n: tensors[n].detach().to(kinds[n]).contiguous() for n in shapes}
        stream = torch.cuda.current_stream()
        first = fed[session.inputs[0]]
        output = torch.empty(session.output_shape(shapes), dtype=kinds[session.output], device=first.device)
        pointers = {n: t.data_ptr() for n, t in fed.items()}
        session.run_on_gpu(pointers, shapes, output.data_ptr(), stream.cuda_stream)
        return output.float()

    def describe(self) -> dict[str, Any]:
        """Backend facts, JSON."""
        record, options = self._record, self._options
        about = {"backend": record["module"], "version": record["version"], "device": "cuda:0", "gpu": self._gpu}
        policy = {"io": options.io, "cuda_graphs": options.cuda_graphs, "threads": None}
        policy |= {"resident_weight_bytes": self.held.resident}
        engine = {k: record[k] for k in ("key", "sm", "flags", "profiles", "plan_bytes", "found")}
        precision = "+".join(sorted({layers.split()[-1] for layers in record["found"] or record["expected"]}))
        return {**about, "precision": precision, **policy, "engine": engine, "lowered": record["problems"]}

    def __exit__(self, *rest: Any) -> None:
        if self._held is not None:
            self._held.close()
        super().__exit__(*rest)


def _too_little(module: str, error: Exception) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"runner {module}: the GPU's memory is not enough: {error} Use a smaller batch, or end other programs on the GPU."
    )


def _spec(session: Session, name: str) -> TensorSpec:
    """Dims by what the profiles leave open: the first is the batch, others are named by their position."""
    shape = tuple(session.engine.get_tensor_shape(name))
    dims = tuple(d if d >= 0 else ("B" if i == 0 else f"{name}.{i}") for i, d in enumerate(shape))
    return TensorSpec(name, dims, str(session.dtypes[name]))
