"""Parts of what `optimize plan` prints."""

from __future__ import annotations

from typing import Any


def cell(
    verdict: str = "works", runner: str | None = "torch", rule: str = "a rate", about: str = "both", **said: str
) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "reason": "Because.",
        "nearest": "",
        "rule": rule,
        "runner": runner,
        "about": about,
    } | said


def forecast(ms: float = 5.0, **candidate: Any) -> dict[str, Any]:
    cost = {"value": 0.25, "low": 0.125, "high": 0.5, "currency": "EUR"}
    chosen = {"nfe": None, "share": 0.0, "format": "fp16"} | candidate
    times = {"latency_ms": ms, "low_ms": ms / 2, "high_ms": ms * 2}
    return times | {
        "memory_bytes": 3 * 10**6,
        "size_bytes": 2 * 10**6,
        "cost_per_1000": cost,
        "candidate": chosen,
        "calibrated": "",
    }


def target(name: str, **changes: Any) -> dict[str, Any]:
    fp8 = cell("impossible", None, "fp8", "format", reason="No FP8.", nearest="int8")
    idle = cell("will not pay", None, "idle", "way", reason="Idle.", nearest="CUDA")
    ways = {
        "torch": {
            "fp16": cell(),
            "fp8": fp8,
            "int8": cell("impossible", None, "sim", "both", reason="Simulated.", nearest="ONNX"),
        },
        "onnxruntime-cpu": {"fp16": idle, "fp8": fp8, "int8": idle},
        "tensorrt": {"fp16": cell(runner=None), "fp8": fp8, "int8": cell(runner=None)},
    }
    proposal = {
        "forecast": forecast(nfe=2, share=0.4),
        "meets": True,
        "certain": False,
        "loss": 0.25,
        "worst_loss": 0.75,
        "needed": [],
        "way": "torch",
        "runner": "torch",
        "recipe": "x",
        "to_fill_in": [],
    }
    passes = [{"place": "passes[0].prune", **cell("will not pay", reason="Odd widths.", nearest="round_to: 16")}]
    about = {"name": name, "title": name.upper(), "sm": "8.6", "ways": ways, "passes": passes}
    return about | {"today": {"fp16": forecast()}, "notes": [], "proposal": proposal} | changes
