"""Check a digits run without the library that made it: size, FD, accuracy and latency by a plain loop of its own.

Needs the exported model.onnx, its sampler.json, the scans and the two networks that judge images; numpy, torch (for
these two small networks), safetensors and ONNX Runtime, and OpenVINO where the run used it. Nothing of `optimize` is
imported. Prints a table and exits with 0 where every figure agrees with summary.json, 1 where one does not, 2 where the
input is not there. Latency is informative: it depends on what else the machine does.

    python benchmarks/verify_digits.py --summary exported/digits/summary.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Call = Callable[[dict[str, np.ndarray]], np.ndarray]
Line = tuple[str, str, str, str, bool, bool]  # figure, reported, recomputed, tolerance, agrees, counts

FD_RELATIVE, FD_ABSOLUTE = 0.05, 0.05  # FD may differ by the larger of the two
ACCURACY = 0.005  # absolute: half a point; in the worst class one image, where that is more
LATENCY_RELATIVE = 0.25
DRAW_BATCH = 50  # images drawn together at most, where nothing is timed
SCORE_NAMES = {"all": "fd", "held_out": "fd_held_out", "training": "fd_training"}


def draw(call: Call, sampling: dict[str, Any], seeds: range) -> np.ndarray:
    """Images (N,C,H,W) float32 in [-1, 1] by DDIM: z_s = alpha_s x + sigma_s e at the times of sampler.json.

    The state is float64, the network is fed float32. Guidance takes x = (1 + w) x_label - w x_null, likewise e.
    """
    labels = np.array([s % sampling["conditioning"]["classes"] for s in seeds], dtype=np.int64)
    z = np.stack([unit_noise(s, tuple(sampling["shape"])) for s in seeds]).astype(np.float64)
    clip = sampling["sampler"]["clip"]
    for now, following in pairwise(sampling["steps"]):
        x, e = predict(call, sampling, z, now, labels)
        if clip is not None:
            x = np.clip(x, -clip, clip)
            e = (z - now["alpha"] * x) / now["sigma"]
        z = following["alpha"] * x + following["sigma"] * e
    return np.clip(z, -1, 1).astype(np.float32)


def unit_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 noise of one seed, from a Philox generator keyed by a hash of the seed."""
    name = "\x1f".join(("str:sample", f"int:{seed}")).encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "big")
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)


def predict(
    call: Call, sampling: dict[str, Any], z: np.ndarray, at: dict[str, float], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The clean image and the noise that the network sees in z, guided where the sampler says so."""
    weight = sampling["sampler"]["guidance"]["cfg"]
    x, e = read(sampling, evaluate(call, z, at["t"], labels), z, at)
    if not weight:
        return x, e
    nulls = np.full_like(labels, sampling["conditioning"]["null"])
    x_null, e_null = read(sampling, evaluate(call, z, at["t"], nulls), z, at)
    return (1 + weight) * x - weight * x_null, (1 + weight) * e - weight * e_null


def evaluate(call: Call, z: np.ndarray, t: float, labels: np.ndarray) -> np.ndarray:
    """The network's raw output, float64."""
    times = np.full(len(z), t, dtype=np.float32)
    return call({"sample": z.astype(np.float32), "timestep": times, "class_labels": labels}).astype(np.float64)


def read(
    sampling: dict[str, Any], raw: np.ndarray, z: np.ndarray, at: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(x, e) from a raw output; z = alpha x + sigma e."""
    alpha, sigma = at["alpha"], at["sigma"]
    meaning = sampling["parameterization"]["prediction"]
    if meaning == "v":
        return alpha * z - sigma * raw, sigma * z + alpha * raw
    if meaning == "epsilon":
        return (z - sigma * raw) / alpha, raw
    if meaning == "sample":
        return raw, (z - alpha * raw) / sigma
    raise SystemExit(f"sampler.json: prediction {meaning!r} is not known to this program (v, epsilon, sample)")


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|² + tr(A) + tr(B) - 2 tr (A B)^1/2 of two feature sets (N,D); the root's trace from eigenvalues of A B."""
    gap = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(cov_a @ cov_b).real, 0))
    return float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum())


def judge(folder: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(features (N,D), logits (N,K)), float64, of the convolutional network in `folder`, written out layer by layer."""
    import torch
    from torch.nn import functional as F

    config = json.loads((folder / "config.json").read_text())
    weights = {k: torch.from_numpy(v) for k, v in load_file(folder / "model.safetensors").items()}

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def block(x: Any, conv: str, norm: str) -> Any:
        x = F.conv2d(x, weights[f"{conv}.weight"], padding=config["kernel"] // 2)
        statistics = (weights[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.silu(F.batch_norm(x, *statistics))

    def forward(x: Any) -> tuple[Any, Any]:
        for i in range(len(config["widths"])):
            x = F.avg_pool2d(x, 2) if i else x
            x = block(block(x, f"stages.{i}.0", f"stages.{i}.1"), f"stages.{i}.3", f"stages.{i}.4")
        features = linear(F.adaptive_avg_pool2d(x, config["grid"]).flatten(1), "project")
        return features, linear(F.silu(features), "classify")

    with torch.inference_mode():
        parts = [forward(part) for part in torch.from_numpy(images).split(250)]
    features, logits = (torch.cat(p).double().numpy() for p in zip(*parts))
    return features, logits


def onnxruntime_call(model: Path, batch: int, precision: str) -> Call:
    """The file in ONNX Runtime, operator by operator as it is written: no Q/DQ fusion changes a number."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    wanted = [i.name for i in session.get_inputs()]
    return lambda feed: session.run(None, {k: feed[k] for k in wanted})[0]


def openvino_call(model: Path, batch: int, precision: str) -> Call:
    """The file in OpenVINO, compiled for one batch size; what is not INT8 computes in BF16 where the row says so."""
    import openvino

    core = openvino.Core()
    graph = core.read_model(str(model))
    graph.reshape({p.any_name: [batch, *(d.get_length() for d in p.partial_shape[1:])] for p in graph.inputs})
    hint = "bf16" if "bf16" in precision else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(graph, "CPU", settings).create_infer_request()
    wanted = [p.any_name for p in graph.inputs]
    return lambda feed: request.infer({k: feed[k] for k in wanted})[0].copy()


BACKENDS = {"onnxruntime": onnxruntime_call, "openvino": openvino_call}


def rows_to_check(summary: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The final row, then every other row of the same artifact, at its batch, whose runner this program has."""
    final = next((r for r in summary["rows"] if r["variant"] == "final"), None)
    if final is None:
        raise SystemExit("summary.json holds no final row: the run did not finish")
    seen = set()
    for row in (final, *summary["rows"]):
        key = (row["runner"], row["precision"])
        same = (row["artifact_id"], row["batch"]) == (final["artifact_id"], final["batch"])
        if same and row["status"] == "done" and row.get("quality") and row["runner"] in BACKENDS and key not in seen:
            seen.add(key)
            yield row


def check_row(row: dict[str, Any], run: Run) -> list[Line]:
    """Every figure of one row, recomputed."""
    build = BACKENDS[row["runner"]]
    together = max(b for b in range(1, DRAW_BATCH + 1) if run.images % b == 0)
    call, starts = build(run.model, together, row["precision"]), range(0, run.images, together)
    images = np.concatenate([draw(call, run.sampling, range(s, s + together)) for s in starts])
    scores = run.scores(images)
    lines = [_near(n, row["quality"], v, FD_RELATIVE, FD_ABSOLUTE) for n, v in scores.items() if n.startswith("fd")]
    per_class = run.images // run.sampling["conditioning"]["classes"]
    allowed = {"class_accuracy": ACCURACY, "class_accuracy_min": max(ACCURACY, 1 / per_class)}
    lines += [_near(n, row["quality"], scores[n], 0.0, a) for n, a in allowed.items()]
    timed = latency_ms(build(run.model, row["batch"], row["precision"]), run.sampling, row["batch"])
    for kind, value in timed.items():
        reported = row[f"{kind}_latency_ms"]["p50"]
        agrees = abs(value / reported - 1) <= LATENCY_RELATIVE
        lines.append((f"{kind} ms p50", f"{reported:.3f}", f"{value:.3f}", f"{LATENCY_RELATIVE:.0%}", agrees, False))
    return lines


def latency_ms(call: Call, sampling: dict[str, Any], batch: int, seconds: float = 4.0) -> dict[str, float]:
    """Median milliseconds of one network call at a batch, and of a batch's images divided by its size."""
    steps = sampling["steps"]
    z = np.stack([unit_noise(s, tuple(sampling["shape"])) for s in range(batch)])
    middle, labels = steps[(len(steps) - 1) // 2]["t"], np.arange(batch, dtype=np.int64) % 10
    call_s = median_s(lambda: evaluate(call, z, middle, labels), seconds)
    image_s = median_s(lambda: draw(call, sampling, range(batch)), seconds)
    return {"call": 1e3 * call_s, "image": 1e3 * image_s / batch}


def median_s(function: Callable[[], Any], limit_s: float) -> float:
    """Median of up to 200 timings within `limit_s`, after a quarter of that time of warm-up."""
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < 5 or (len(taken) < 200 and time.perf_counter() - start < 1.25 * limit_s):
        before = time.perf_counter()
        function()
        if before - start > limit_s / 4:
            taken.append(time.perf_counter() - before)
    return float(np.median(taken))


class Run:
    """The files of a run, and the scans' features, computed once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.images = options.model, options.images
        self.sampling = json.loads(options.sampler.read_text())
        if self.sampling["sampler"]["solver"] != "ddim" or self.sampling["sampler"]["guidance"].get("interval"):
            raise SystemExit("sampler.json: this program knows DDIM without a guidance interval only")
        self.features, self.classifier = options.features, options.classifier
        scans = {path.stem: load_file(path)["images"].astype(np.float32) for path in options.scans}
        scans["all"] = np.concatenate(list(scans.values()))
        self.reference = {name: judge(self.features, images)[0] for name, images in scans.items()}

    def scores(self, images: np.ndarray) -> dict[str, float]:
        """FD to each set of scans, and accuracy over all and in the worst class, of images of seeds 0, 1, …"""
        features, _ = judge(self.features, images)
        found = {SCORE_NAMES[n]: frechet(r, features) for n, r in self.reference.items() if n in SCORE_NAMES}
        asked = np.arange(len(images)) % self.sampling["conditioning"]["classes"]
        right = judge(self.classifier, images)[1].argmax(axis=1) == asked
        worst = min(float(right[asked == c].mean()) for c in np.unique(asked))
        return {**found, "class_accuracy": float(right.mean()), "class_accuracy_min": worst}


def _near(name: str, quality: dict[str, Any], value: float, relative: float, absolute: float) -> Line:
    """A line that agrees where `value` is within the larger tolerance; one that was not reported does not."""
    entry = quality.get(name)
    reported = float(entry["value"] if isinstance(entry, dict) else entry) if entry is not None else math.nan
    allowed = max(relative * abs(reported), absolute)
    agrees = abs(value - reported) <= allowed + 1e-9
    return name, f"{reported:.4f}", f"{value:.4f}", f"±{allowed:.4f}", agrees, True


def size_line(model: Path, row: dict[str, Any]) -> Line:
    """Bytes of the file with what lies beside it as external data: exact."""
    size = sum(p.stat().st_size for p in model.parent.iterdir() if p.name.startswith(model.name))
    reported = row["size_bytes"]
    return "size bytes", f"{reported:,}", f"{size:,}", "exact", size == reported, True


def show(title: str, lines: list[Line]) -> None:
    """Print lines as a table."""
    print(title)
    for name, reported, value, tolerance, agrees, counts in lines:
        mark = "agrees" if agrees else "DIFFERS" if counts else "differs (informative)"
        print(f"  {name:<20}{reported:>14}{value:>14}  {tolerance:<10}{mark}")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Options; the defaults are those of `optimize run digits` from the repository's root."""
    out, example = Path("exported/digits"), Path("examples/digits")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=out / "final/onnx/model.onnx")
    parser.add_argument("--sampler", type=Path, default=out / "final/sampler.json")
    scans = [example / "training.safetensors", example / "held_out.safetensors"]
    parser.add_argument("--scans", type=Path, nargs="+", default=scans)
    parser.add_argument("--features", type=Path, default=example / "features")
    parser.add_argument("--classifier", type=Path, default=example / "classifier")
    parser.add_argument("--summary", type=Path, default=out / "summary.json")
    parser.add_argument("--images", type=int, help="as in the run, where not given")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """0 where all figures agree, 1 where one does not, 2 where a file or a backend is missing."""
    options = arguments(given)
    paths = (options.model, options.sampler, options.summary, options.features, options.classifier, *options.scans)
    missing = [str(p) for p in paths if not p.exists()]
    if missing:
        print(f"not there: {', '.join(missing)}. Run `optimize run digits` first, or name the files.", file=sys.stderr)
        return 2
    rows = list(rows_to_check(json.loads(options.summary.read_text())))
    if not rows:
        print("no row of the final artifact ran in ONNX Runtime or OpenVINO: nothing to check", file=sys.stderr)
        return 2
    options.images = options.images or rows[0]["quality"]["fd"]["n"]
    run, lines = Run(options), [size_line(options.model, rows[0])]
    print(f"  {'':<20}{'summary.json':>14}{'recomputed':>14}  tolerance")
    show(f"{options.model}", lines)
    for row in rows:
        try:
            found = check_row(row, run)
        except ImportError as error:
            print(f"{row['runner']}: skipped, {error}")
            continue
        show(f"{row['runner']}, {row['precision']}, batch {row['batch']}, {run.images} images", found)
        lines += found
    wrong = [line[0] for line in lines if line[5] and not line[4]]
    checked = sum(line[5] for line in lines)
    print(f"{len(wrong)} of {checked} figures differ: {', '.join(wrong)}" if wrong else f"all {checked} figures agree")
    return 2 if checked == 1 else int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
