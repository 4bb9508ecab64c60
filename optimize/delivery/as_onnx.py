"""A model as an artifact with its ONNX file, in one step: a network as it comes, or a model made in Python.

The file is run by ONNX Runtime and compared with the network over the noise range before anything is kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from optimize.architectures.artifact import sampler_json, save_model
from optimize.configs import described, digest
from optimize.diffusion.backend import open_runner, reads_weights
from optimize.diffusion.context import Context
from optimize.errors import EnvironmentLacks, GateFailed, UserError, cut, unknown
from optimize.hardware import environment
from optimize.plain.text import parse_yaml
from optimize.recipes.schema import ParityGate
from optimize.registry import EXPORTERS
from optimize.storage.commit import commit
from optimize.storage.ours import kind_of, refuse_foreign, settled
from optimize.storage.swap import restore
from optimize.storage.trust import MANIFEST
from optimize.storage.weights import file_sha256, read_json

if TYPE_CHECKING:
    from optimize.diffusion.model import Model

LEVELS, BATCH = 3, 2  # noise levels and samples that the file is compared at
RUNNER = "onnxruntime"


def export_model(model: Model, out: Path, config: Any = None, context: Context | None = None) -> dict[str, Any]:
    """Write `model` to the artifact `out` with `onnx/model.onnx` as the exporter's `config` says; returns the manifest.

    Raises what `write_onnx` raises, UserError where `out` is something else than an artifact; nothing is written then."""
    check_out(out, "artifact")
    config = config or onnx_config({})

    def write(folder: Path) -> dict[str, Any]:
        save_model(folder, model)
        record, parity = write_onnx(model, folder, config, context or Context())
        about: dict[str, Any] = {"stage": "export", "parent": model.id or None, "source": model.source}
        edits = [{"name": e["pass"], "config": {}, "record": e["record"]} for e in model.structure.edits]
        depends = {
            **about,
            "weights": file_sha256(folder / "model.safetensors"),
            "structure": model.structure.to_json(),
            "sampler": sampler_json(model),
            "onnx": config.to_json(),
        }
        about |= {"id": digest(depends), "passes": edits, "environment": environment.environment()}
        return about | {"count": _count(model), "exports": {"onnx": record}, "parity": parity}

    return commit(out, write)


def _count(model: Model) -> dict[str, int]:
    from optimize.diffusion.macs import count

    return count(model)


def write_onnx(model: Model, folder: Path, config: Any, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """`folder/onnx/model.onnx`: the exporter's record, and `{runner: parity}`. Raises GateFailed where the file is farther
    from the network than its narrowest format may be, or either gives NaN, ArtifactError where a weight is NaN,
    EnvironmentLacks without ONNX Runtime or room."""
    from optimize.diffusion.parity import parity, worst

    check_ort()
    record = config.export(model, folder, context)
    _require_memory(model)
    with open_runner(folder, RUNNER) as network:
        far = parity(model, network, LEVELS, BATCH) | {"runner": network.describe()}
    if "not_finite" in far:
        raise GateFailed(
            f"onnx: {far['not_finite']}. Nothing was written. Look for what overflows there: give a checkpoint that computes "
            "numbers over the whole noise range, keep more layers in FP32 (fp32_layers), or use a wider precision."
        )
    format = narrowest(record)
    limit = limit_of(format)
    if not worst(far, format) <= limit:
        raise GateFailed(
            f"onnx: the exported file is {worst(far, format):.2g} (relative L2) from the network; at most {limit:g} is let "
            f"through in {format}. Nothing was written. Keep more layers in FP32 (fp32_layers), or use a wider precision."
        )
    return record, {RUNNER: far}


def _require_memory(model: Model) -> None:
    """Raise EnvironmentLacks where ONNX Runtime's FP32 weights do not fit beside the network's own."""
    import psutil

    needed, free = 4 * sum(p.numel() for p in model.module.parameters()), psutil.virtual_memory().available
    if free < needed:
        raise EnvironmentLacks(
            f"export: comparing the file with its network takes {needed / 1e9:.1f} GB of memory more, {free / 1e9:.1f} GB are free. "
            "Nothing was written. Close other programs, or use a larger machine."
        )


def narrowest(record: Mapping[str, Any]) -> str:
    """The narrowest format that an exported file computes layers in."""
    return next((f for f in ("fp8", "int8") if record.get(f"{f}_layers")), str(record["precision"]))


def limit_of(format: str) -> float:
    """Relative L2 that an export may differ by, as a recipe's gates have it by default."""
    return float(ParityGate().to_json()[format])


def merged(parity: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Parity after the file was written anew: of the runners that do not read it, and the new one's."""
    return {spec: found for spec, found in parity.items() if reads_weights(spec)} | dict(new)


def check_ort() -> None:
    """Raise EnvironmentLacks where ONNX Runtime, which compares exported files, is missing."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise EnvironmentLacks(
            "export: ONNX Runtime compares every exported file with its network, and is not installed. pip install onnxruntime"
        ) from error


def check_out(out: Path, kind: str) -> None:
    """Only a new or empty folder, or an earlier export of the same kind (artifact or pipeline) as it was written, is
    written to."""
    restore(out)
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        earlier = read_json(out / MANIFEST) if (out / MANIFEST).is_file() else None
        if not isinstance(earlier, dict) or kind_of(earlier) != kind:
            word = "artifact" if kind == "artifact" else "exported pipeline"
            raise UserError(f"--out: {out} exists and is no {word}; it is left alone. Give a new folder.")
    settled(refuse_foreign, out)


def load_network(path: Path, config: Path | None = None, null_class: int | None = None) -> Model:
    """The denoiser in a folder of diffusers, or in a checkpoint of one file with the folder of its configs; `null_class` is
    the label that means no class. ArtifactError saying what the path is instead."""
    from optimize.diffusion.sampling import Sampler
    from optimize.sources.diffusers import DiffusersSource

    return DiffusersSource(path, config=config, null_class=null_class).load(Sampler())


def onnx_config(fields: Mapping[str, Any], option: str = "") -> Any:
    """The ONNX exporter's config; UserError naming every field that is wrong, `option` before it."""
    plugin = EXPORTERS.get("onnx")
    try:
        return plugin.model_validate(dict(fields))
    except ValidationError as error:
        raise UserError("\n".join(f"{option}{line}" for line in described(error, plugin))) from None


def parse_onnx(texts: Sequence[str]) -> Any:
    """The exporter's config of a command line's texts, ["precision=fp16", "symbolic=B,H,W"]; None for none."""
    if not texts:
        return None
    known = EXPORTERS.get("onnx").model_fields
    fields: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise UserError(f'--onnx: given "{cut(text)}". Write a field and its value, e.g. precision=fp16.')
        if name not in known:
            raise unknown("--onnx", name, known)
        if name in fields:
            raise UserError(f"--onnx: {name} is given twice. Give it once.")
        several = "tuple" in str(known[name].annotation)
        fields[name] = [v.strip() for v in value.split(",")] if several else _value(text, value)
    return onnx_config(fields, "--onnx ")


def _value(text: str, value: str) -> Any:
    try:
        return parse_yaml(value, "--onnx")
    except UserError:
        raise UserError(f'--onnx: the value of "{cut(text)}" cannot be read. Write e.g. precision=fp16.') from None
