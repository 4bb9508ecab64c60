"""A build kit: everything a machine with the card needs to build, check and time an engine that cannot be built here.

One folder (or zip): the ONNX file, kit.json (target, profiles, flags, expected formats, SHA-256 of every file), inputs
and the outputs expected of them, README.md with the versions to install, and build.py, one script made of this
package's own builder.
"""

from __future__ import annotations

import ast
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.engines.kits.kept import refuse_changed_zip, zip_of
from optimize.engines.libraries import TITLES, sm_text
from optimize.hardware.targets import Target
from optimize.storage.commit import hash_files, write_json
from optimize.storage.disk import writing
from optimize.storage.locks import held
from optimize.storage.swap import beside, discard, remove, sync, tidy

if TYPE_CHECKING:
    from optimize.diffusion.model import Model

SOURCES = (
    "../hardware/memory",
    "builder",
    "cuda",
    "session",
    "plan_text",
    "script",
)  # of build.py, what is used standing first
LANES = {  # pins and their reasons, by lane
    "volta": (
        ["tensorrt-cu12==10.4.*", "numpy>=1.26"],
        [
            "TensorRT 10.4 is the last with kernels for SM 7.0; 10.5 dropped it.",
            "CUDA 12: CUDA 13 and cuDNN 9.11 dropped SM 7.0 as well.",
            "The same ONNX file is built as a strongly typed network; INT8 has no tensor cores on this card.",
        ],
    ),
    "current": (
        ["tensorrt>=10.4", "numpy>=1.26"],
        ["An engine runs only on the exact version it was built with, so build it with the server's."],
    ),
}
README = """# Build kit: {name} for {title} (SM {sm})

    pip install {pins}
    python build.py

{reasons}

`build.py` needs numpy and {modules}, nothing else. It checks every file against kit.json, builds the engine, compares
the formats of its layers with the graph's ({expected}), runs it on the inputs in `parity/` and compares (relative L2 up
to {limit:g}), times it with and without CUDA graphs, and writes `tensorrt/` and `result.json`.
Without a GPU it builds what can be built ahead of time (TensorRT-RTX only) and says what was not checked.

Then bring this folder, or a zip of it, back; there `optimize export ARTIFACT --adopt FOLDER` takes the engine into the
artifact. kit.json, result.json and `tensorrt/` are enough.
"""


def write_kit(
    folder: Path, onnx: Path, files: Sequence[str], about: dict[str, Any], cases: list[dict[str, Any]]
) -> None:
    """Fill `folder` (new, inside a `commit`): `about` is kit.json without its files; `cases` hold {case, inputs, output}
    as numpy arrays. `files` are the ONNX file's and its external data's names."""
    for name in files:
        shutil.copy2(onnx.parent / name, folder / name)
    (folder / "build.py").write_text(script())
    written = write_cases(folder, cases)
    (folder / "README.md").write_text(_readme(about))
    hashes = {path: entry["sha256"] for path, entry in hash_files(folder).items()}
    write_json(folder / "kit.json", {"schema": 1, **about, "onnx": onnx.name, "parity": written, "files": hashes})


def write_cases(folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Inputs and expected outputs as .npy files; returns the cases with paths in the arrays' place."""
    import numpy as np

    (folder / "parity").mkdir()
    written = []
    for number, case in enumerate(cases):
        paths = {name: f"parity/{number}.{name}.npy" for name in case["inputs"]}
        for name, path in paths.items():
            np.save(folder / path, case["inputs"][name], allow_pickle=False)
        output = f"parity/{number}.output.npy"
        np.save(folder / output, case["output"], allow_pickle=False)
        written.append({"case": case["case"], "inputs": paths, "output": output})
    return written


def cases_of(model: Model, batches: Sequence[int], levels: int = 3) -> list[dict[str, Any]]:
    """Parity cases of a model: seeded inputs at `levels` noise levels, at each batch size, and the torch network's
    outputs."""
    import torch

    from optimize.diffusion.parity import noise_levels, noised_inputs

    found = []
    for batch in batches:
        for t in noise_levels(model, levels):
            feed = noised_inputs(model, t, batch, seed=0)
            with torch.inference_mode():
                output = model.denoiser.network(**feed)
            inputs = {name: value.cpu().numpy() for name, value in feed.items()}
            found.append({"case": f"batch {batch}, t = {t:g}", "inputs": inputs, "output": output.cpu().numpy()})
    return found


def about_kit(
    name: str,
    target: Target,
    job: dict[str, Any],
    expected: dict[str, int],
    limit: float,
    precision: str,
    estimate: int = 0,
) -> dict[str, Any]:
    """kit.json's fields that do not depend on files: who it is for, what to install, what to build and to expect."""
    assert target.sm is not None
    pins, reasons = LANES["volta" if target.sm < (7, 5) else "current"]
    modules = ["tensorrt", *(["tensorrt_rtx"] if target.tensorrt_rtx else [])]
    return {
        "name": name,
        "target": target.name,
        "title": target.title,
        "sm": list(target.sm),
        "precision": precision,
        "modules": modules,
        "pins": pins,
        "reasons": reasons,
        "job": job,
        "expected": expected,
        "limit": limit,
        "estimate": estimate,  # bytes of memory a build takes
    }


def zip_folder(folder: Path) -> Path:
    """The folder as a zip file beside it; the folder is removed. ArtifactError where another zip than a kit's is there."""
    path = zip_of(folder)
    temporary = beside(path, "new")
    with held(path), writing(path):
        tidy(path)
        refuse_changed_zip(path)
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
                for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                    made.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
            sync(temporary)
            temporary.replace(path)
        finally:
            remove(temporary)
        discard(folder)
    return path


def script() -> str:
    """build.py: the sources of the builder, the driver, the session and the kit's own program as one file."""
    here = Path(__file__).parents[1]
    parsed = [(here / f"{name}.py").read_text() for name in SOURCES]
    imports: dict[str, None] = {}
    bodies = []
    for source in parsed:
        body, needed = _split(source)
        imports |= dict.fromkeys(needed)
        bodies.append(body)
    opening = ast.get_docstring(ast.parse(parsed[-1]), clean=False)
    head = f'"""{opening}"""\n\nfrom __future__ import annotations\n\n' + "\n".join(sorted(imports))
    return "\n\n\n".join([head, *(b.strip() for b in bodies)]) + "\n"


def _split(source: str) -> tuple[str, list[str]]:
    """A file's text without its docstring and imports, and the imports from outside this package."""
    tree, lines = ast.parse(source), source.splitlines()
    needed = []
    for node in tree.body:
        documented = node is tree.body[0] and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not documented and not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if not documented and "__future__" not in text and "optimize" not in text:
            needed.append(text)
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    return "\n".join(lines), needed


def _readme(about: dict[str, Any]) -> str:
    formats = ", ".join(f"{n} {f}" for f, n in about["expected"].items())
    return README.format(
        name=about["name"],
        title=about["title"],
        sm=sm_text(about["sm"]),
        pins=" ".join(f"'{p}'" for p in about["pins"]),
        reasons="\n".join(f"- {r}" for r in about["reasons"]),
        modules=" or ".join(TITLES[m] for m in about["modules"]),
        expected=formats,
        limit=about["limit"],
    )
