"""Predicted memory of a network call against what a fresh process needed, in torch eager on the CPU.

Predicted are the weights and the most activations alive at once. Measured is how far the resident memory rises when the
module is loaded, and from there at the highest point of a call; every network in a process of its own whose allocator
gives freed tensors back at once. What torch's kernels take besides (oneDNN's scratch memory) is not predicted, so the
measured figure should lie above. Ends with 1 where the median of |predicted / measured - 1| is above 20 %.

    python benchmarks/memory_error.py [--json record.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from optimize.hardware.environment import environment
from optimize.measure import memory
from optimize.roofline import probe as c

ERROR = 0.20
BATCHES = (1, 4)
PARTS = ("weights", "activations")


def networks() -> dict[str, dict[str, Any]]:
    """Networks whose activations take megabytes: convolutions, attention over many positions, transformers."""
    return {
        "unet 64/128, 64x64": c.unet_config((64, 128), 2, 64, attention=()),
        "unet 128/256/256, 32x32": c.unet_config((128, 256, 256), 2, 32),
        "unet 64/128/128, attention at 32x32": c.unet_config((64, 128, 128), 1, 64),
        "unet 320/640, 32x32": c.unet_config((320, 640), 1, 32, attention=()),
        "dit 384, 64x64": c.dit_config(384, 8, 64),
        "dit 768, 32x32": c.dit_config(768, 6, 32),
    }


def child(config: dict[str, Any], batch: int) -> dict[str, int]:
    """Bytes by which this process grew with the module, and above that at the most during its second call."""
    import torch

    from optimize.diffusion.network import example_inputs

    torch.set_num_threads(1)
    for small in (c.unet_config((16, 32), 1, 16), c.dit_config(32, 1, 16)):  # imports what it takes
        module, inputs = c.built(small)
        c.caller(module, example_inputs(inputs, 1, classes=2))()
    start = memory.resident_bytes()
    module, inputs = c.built(config)
    loaded = memory.resident_bytes()
    call = c.caller(module, example_inputs(inputs, batch, classes=2))
    call()
    before = memory.resident_bytes()
    if not memory.reset_peak():
        raise SystemExit("the peak of the resident memory cannot be reset on this system (Linux alone can)")
    call()
    return {"weights": loaded - start, "activations": memory.peak_bytes() - before}


def predicted(config: dict[str, Any], batch: int) -> dict[str, int]:
    """Bytes of weights and activations as `optimize plan` has them, in FP32."""
    from optimize.diffusion.network import example_inputs
    from optimize.hardware.targets import target
    from optimize.roofline.layers import layers
    from optimize.roofline.predict import predict

    module, inputs = c.built(config)
    operators = layers(module, feed=example_inputs(inputs, batch, classes=2))
    found = predict(operators, target("a100"), "fp32")  # bytes are the same on every device
    return {"weights": found.size_bytes, "activations": found.memory_bytes - found.size_bytes}


def row(name: str, config: dict[str, Any], batch: int) -> dict[str, Any]:
    """Predicted and measured bytes of one network at one batch."""
    command = [sys.executable, __file__, "--child", json.dumps(config), "--batch", str(batch)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=True, timeout=300)
    return {
        "network": name,
        "batch": batch,
        "predicted": predicted(config, batch),
        "measured": json.loads(done.stdout.splitlines()[-1]),
    }


def errors(rows: list[dict[str, Any]], *parts: str) -> list[float]:
    """predicted / measured - 1 of every row, of these parts together."""
    return [sum(r["predicted"][p] for p in parts) / sum(r["measured"][p] for p in parts) - 1 for r in rows]


def show(rows: list[dict[str, Any]]) -> float:
    """Print the table; the median error of the whole."""
    print(
        f"{'network':<38}{'batch':>5}{'weights MB':>20}{'activations MB':>22}{'error':>8}\n{'':43}{'predicted, measured':>20}{'predicted, measured':>22}"
    )
    whole = errors(rows, *PARTS)
    for r, error in zip(rows, whole):
        texts = [f"{r['predicted'][k] / 1e6:.1f}, {r['measured'][k] / 1e6:.1f}" for k in PARTS]
        print(f"{r['network']:<38}{r['batch']:>5}{texts[0]:>20}{texts[1]:>22}{error:>+8.0%}")
    found = median(map(abs, whole))
    parts = {k: median(map(abs, errors(rows, k))) for k in PARTS}
    print(
        f"median error {found:.0%} (at most {ERROR:.0%}); of weights {parts['weights']:.0%}, of activations {parts['activations']:.0%}"
    )
    return found


def main(given: list[str] | None = None) -> int:
    """0 where the median error is small enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    if asked.child:
        print(json.dumps(child(json.loads(asked.child), asked.batch)))
        return 0
    rows = [row(name, config, batch) for name, config in networks().items() for batch in BATCHES]
    found = show(rows)
    if asked.json:
        record = {"environment": environment(), "rows": rows, "median_error": found}
        asked.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if found <= ERROR else 1


if __name__ == "__main__":
    sys.exit(main())
