"""Every writer of something large on a disk of one mebibyte:  python -m support.full_disk FOLDER [LIMIT_BYTES]

Prints a JSON line for each: what was raised, with which exit code, and what stayed. LIMIT_BYTES bounds a file's size
instead, where no small disk can be had.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def writers() -> dict[str, Callable[[Path], object]]:
    """Name -> write something of at least two mebibytes below a folder."""
    import numpy as np
    import onnx_ir as ir
    import torch

    from optimize.cli.log import RunLog
    from optimize.engines.kits import compose
    from optimize.onnx.file import save
    from optimize.quality.grid import grid
    from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig
    from optimize.storage import ledger
    from optimize.storage.cache import Store
    from optimize.storage.commit import commit, write_json, write_text_atomically
    from optimize.storage.disk import save_tensors
    from optimize.training.loop import TrainingConfig, train

    tensor, text = torch.rand(2**20), "x" * 2**22

    source = Path(sys.argv[1]).parent / "source"
    source.mkdir(exist_ok=True)
    (source / "large").write_text(text)

    def stage(folder: Path) -> None:
        def compute(made: Path, work: Path) -> dict[str, Any]:
            save_tensors({"a": tensor}, made / "a.safetensors")
            return {}

        with Store(folder) as store:
            store.stage("s", {}, compute)

    def copied(folder: Path) -> None:
        import shutil

        commit(folder / "a", lambda made: (shutil.copytree(source, made, dirs_exist_ok=True), {})[1])

    def graph(embedded: int) -> Callable[[Path], object]:
        value = ir.Value(name="w", const_value=ir.tensor(tensor.numpy(), name="w"))
        x = ir.Value(name="x", shape=ir.Shape([2**20]), type=ir.TensorType(ir.DataType.FLOAT))
        node = ir.node("Add", [x, value])
        node.outputs[0].name = "y"
        made = ir.Graph([x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 18}, name="g")
        return lambda folder: save(ir.Model(made, ir_version=10), folder / "model.onnx", embedded)

    def checkpoint(folder: Path) -> None:
        module = torch.nn.Linear(700, 700)
        config = TrainingConfig(steps=1, batch=1, precision="fp32", checkpoint_s=0)
        train(module, lambda m, step, share: m(torch.ones(1, 700)).sum(), config, seed=0, name="t", checkpoints=folder)

    def log(folder: Path) -> None:
        import logging

        RunLog(folder / "run.log").handle(logging.LogRecord("optimize", 20, "", 0, text, None, None))

    def kit(folder: Path) -> None:
        (folder / "kit").mkdir()
        for name in ("model.onnx", "model.onnx.data"):
            (folder / "kit" / name).write_bytes(np.random.default_rng(len(name)).bytes(450_000))
        compose.zip_folder(folder / "kit")

    def page(folder: Path) -> None:
        with ledger.opened(folder, ("report.html",)) as put:
            put("report.html", text.encode())

    cases = [{"case": "a", "inputs": {"x": tensor.numpy()}, "output": tensor.numpy()}]
    pictures = {f"row {n}": torch.rand(20, 3, 128, 128) * 2 - 1 for n in range(4)}
    classifier = ImageClassifierConfig(widths=(64, 256), feature_dim=64)
    return {
        "tensors": lambda f: save_tensors({"a": tensor}, f / "a.safetensors"),
        "stage": stage,
        "copied files": copied,
        "parity cases": lambda f: commit(f / "kit", lambda made: {"x": len(compose.write_cases(made, cases))}),
        "json": lambda f: commit(f / "a", lambda made: (write_json(made / "a.json", text), {})[1]),
        "text": lambda f: write_text_atomically(f / "a.md", text),
        "page": page,
        "onnx": graph(2**30),
        "onnx and its weights": graph(0),
        "checkpoint": checkpoint,
        "grid": lambda f: grid(pictures, f / "grid.png"),
        "log": log,
        "kit as a zip": kit,
        "classifier": lambda f: ImageClassifier(classifier).save(f),
    }


def main() -> None:
    """Each writer in an empty folder; what it raised and what it left."""
    root = Path(sys.argv[1])
    found = writers()
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    for name, write in found.items():
        folder = root / "one"
        folder.mkdir()
        try:
            write(folder)
            said = {"error": "nothing", "code": 0, "text": ""}
        except BaseException as error:  # noqa: BLE001 -- told to the test
            said = {"error": type(error).__name__, "code": getattr(error, "exit_code", None), "text": str(error)}
        left = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        print(json.dumps({"writer": name, **said, "left": left}), flush=True)
        import shutil

        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
