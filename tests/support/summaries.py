"""Made-up summaries that the report tests share."""

from __future__ import annotations

import base64
import copy
from typing import Any

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def figure(value: float, spread: float = 0.05, n: int = 1000) -> dict[str, Any]:
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread), "n": n}


def row(
    variant: str, runner: str, batch: int, image_ms: float, fd: float | None, size: int, nfe: int, **more: Any
) -> dict[str, Any]:
    """One measured row; its speed-ups follow from `image_ms` against fixed baseline and fair latencies."""
    base, fair = {1: (700.0, 21.0), 16: (168.0, 4.234)}[batch]
    times = {"p50": image_ms, "p90": image_ms * 1.05, "p99": image_ms * 1.2, "n": 40}
    quality = None
    if fd is not None:
        quality = {
            "fd": figure(fd), "fd_held_out": figure(fd * 1.4), "fd_training": figure(fd * 0.98), "kid_held_out": figure(0.02),
            "class_accuracy": figure(0.985, 0.01), "class_accuracy_min": figure(0.95, 0.02), "psnr_db": figure(17.4, 0.01), "ssim": figure(0.71, 0.01),
            "difference": {"fd": figure(fd - 2.05), "class_accuracy": {"value": -0.01, "low": -0.02, "high": 0.004, "n": 1000}},
        }  # fmt: skip
    speedup = {
        k: {"ratio": b / image_ms, "low": 0.94 * b / image_ms, "high": 1.06 * b / image_ms}
        for k, b in (("vs_baseline", base), ("vs_fair", fair))
    }
    return {
        "variant": variant, "stage": variant, "artifact_id": f"{variant}-0123456789abcdef", "target": "here", "runner": runner, "runner_options": {},
        "device": "cpu", "precision": "fp32", "batch": batch, "solver": "ddim", "steps": nfe, "nfe": nfe, "status": "done", "reason": None,
        "predicted": False, "params": size // 4, "macs": size * 11, "size_bytes": size, "image_latency_ms": times,
        "call_latency_ms": {k: (v * batch / nfe if k != "n" else v) for k, v in times.items()}, "images_per_s": 1000 / image_ms,
        "peak_memory_bytes": 412_000_000, "quality": quality, "speedup": speedup, "parity": {"max_abs": 1e-4, "relative_l2": 2.3e-5},
        "gates": {}, "targets": {}, "noisy": False,
    } | more  # fmt: skip


def whole_summary() -> dict[str, Any]:
    """A made-up run: everything measured, one target missed, one row refused."""
    gates = {
        "fd": {"value": 2.61, "limit": 3.35, "at_most": True, "holds": True},
        "class_accuracy": {"value": 0.021, "limit": 0.05, "at_most": True, "holds": True},
        **{f"parity {v} {r}": {"value": 3e-5, "limit": 1e-3, "at_most": True, "holds": True} for v in ("baseline", "prune", "distill") for r in ("onnxruntime", "openvino")},
    }  # fmt: skip
    targets = {
        "speedup_vs_baseline": {"value": 214.3, "limit": 200, "at_most": False, "holds": True},
        "speedup_vs_fair": {
            "value": 5.4,
            "limit": 6,
            "at_most": False,
            "holds": False,
            "note": "a finer student step was tried",
        },
        "size_ratio": {"value": 0.171, "limit": 0.2, "at_most": True, "holds": True},
        "int8_speedup": {"value": 1.62, "limit": 1.4, "at_most": False, "holds": True},
    }
    big, small, tiny = 7_420_000, 4_310_000, 1_270_000
    rows = [
        *(row("baseline", r, b, ms, 2.05, big, 100, psnr=None) for r, b, ms in (("torch", 1, 700.0), ("torch", 16, 168.0), ("onnxruntime", 16, 90.0), ("openvino", 16, 81.0))),
        *(row("fair", "openvino", b, ms, 2.4, big, 12, solver="dpmpp_2m", steps=6) for b, ms in ((1, 21.0), (16, 4.234))),
        row("prune", "openvino", 16, 60.0, 39.0, small, 100),
        row("recover", "openvino", 16, 60.2, 3.2, small, 100),
        *(row("distill", r, b, ms, 2.5, small, 2) for r, b, ms in (("torch", 16, 2.9), ("openvino", 16, 1.27), ("openvino", 1, 5.1))),
        *(row("quantize", r, b, ms, 2.61, tiny, 2, precision="int8") for r, b, ms in (("onnxruntime", 16, 2.2), ("openvino", 16, 0.91), ("openvino", 1, 4.4))),
        row("quantize", "openvino", 16, 0.784, 2.61, tiny, 2, precision="int8+bf16", runner_options={"precision": "bf16"}, noisy=True),
        {"variant": "quantize", "runner": "torch_compile", "batch": 16, "status": "refused", "reason": "torch.compile cannot fuse Q/DQ <nodes> on this CPU"},
        row("final", "openvino", 16, 0.784, 2.61, tiny, 2, precision="int8+bf16", runner_options={"precision": "bf16"}, gates=gates, targets=targets),
    ]  # fmt: skip
    return {
        "schema": 1, "recipe": "digits", "gates_passed": True, "targets_met": False, "gates": gates, "targets": targets, "rows": rows,
        "environment": {"device": "cpu", "cpu": "A processor with 2 cores", "cores": 2, "memory_gib": 15.6, "instructions": ["avx2", "avx512_vnni"], "python": "3.11.9", "libraries": {"torch": "2.13.0", "openvino": "2026.4.1"}},
        "factors": {"guidance": 2.02, "solver": 8.3, "distillation": 2.95, "pruning": 1.43, "precision": 1.62, "runner": 1.87},
        "fair_search": [
            {"solver": "ddim", "steps": 4, "spacing": "trailing", "guided": False, "nfe": 4, "fd": figure(9.1), "class_accuracy_min": 0.83, "passes": False, "reason": "fd 9.100 over 3.350"},
            {"solver": "ddim", "steps": 6, "spacing": "trailing", "guided": True, "nfe": 12, "fd": figure(3.3), "class_accuracy_min": 0.95, "passes": True, "reason": ""},
            {"solver": "dpmpp_2m", "steps": 6, "spacing": "trailing", "guided": True, "nfe": 12, "fd": figure(2.4), "class_accuracy_min": 0.96, "passes": True, "reason": ""},
        ],
        "stages": [
            {"name": "source", "id": "a" * 64, "parent": None, "seconds": 0.4, "cached": True, "record": {}},
            {"name": "prune", "id": "b" * 64, "parent": "a" * 64, "seconds": 21.3, "cached": False, "record": {"importance": "diffusion_taylor", "macs": 0.402, "groups": [{"name": "mid", "kept": 40}] * 900}},
            {"name": "distill", "id": "c" * 64, "parent": "b" * 64, "seconds": 150.0, "cached": False, "record": {"steps": 800, "loss": 0.0123}},
        ],
        "half_split_fd": {"value": 0.68, "low": 0.55, "high": 0.84}, "samples": ["samples/grid.png"],
    }  # fmt: skip


def richer_summary() -> dict[str, Any]:
    """The made-up run with all that rows may hold: layers, cost, energy, 95th percentile, predictions, more judges."""
    summary = whole_summary()
    for r in summary["rows"]:
        if r["status"] == "done":
            for kind in ("image", "call"):
                r[f"{kind}_latency_ms"]["p95"] = r[f"{kind}_latency_ms"]["p50"] * 1.1
            r |= {"cost_per_1000": 12.5 / r["images_per_s"], "energy_j": 65 / r["images_per_s"]}
            if r["quality"]:
                by_class = {"per_class": [1.0, 0.9], "classes": [0, 7], "left_out": {"3": "4 images"}}
                r["quality"] |= {
                    "fd_dinov2": figure(140.0) | {"note": "too few images"},
                    "recall": figure(0.61),
                    "fd_per_class": figure(9.0) | by_class,
                }
                r["quality"]["class_accuracy"] |= by_class
    predicted = copy.deepcopy(summary["rows"][-1]) | {
        "variant": "final",
        "runner": "tensorrt",
        "predicted": True,
        "images_per_s": 9e9,
        "target": "a100",
        "status": "done",
        "batch": 16,
    }
    layers = [
        {"path": f"down.{i}", "kind": k, "macs": 10**i, "params": 100 * i, "bytes": 400 * i, "share_time": t}
        for i, (k, t) in enumerate((("Conv2d", 0.5), ("Linear", 0.1), ("GroupNorm", 0.4)))
    ]
    judges = {
        "features": {"network": {"dinov2": "a/b"}, "about": "the class token"},
        "classifier": {"network": "c"},
        "images": 1000,
    }
    return summary | {"rows": [*summary["rows"], predicted], "layers": layers, "judges": judges}  # fmt: skip
