"""A/A: the same artifact against itself, and against itself slowed by 3 %, compared 200 times by the harness's own method.

Every comparison is `rounds` interleaved rounds of one bench and the interval `speedup` gives them; a difference is
claimed where the interval excludes 1. The workers are started anew for every tenth of the comparisons, so that what
differs between two processes of one program (where their memory lies) counts as well. With --more, the comparisons are
added to those in --out. Exits with 1 where more than 5 % false claims are shown (the whole binomial interval above
5 %), or fewer than 90 % of the slowdowns are found.

    python benchmarks/a_a.py --out exported/a_a.json [--artifact exported/digits/final] [--runner onnxruntime]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from slowed import plugged_in

from optimize.hardware.environment import environment
from optimize.measure.record import Measurement, Variant, speedup
from optimize.measure.statistics import PLACEMENT
from optimize.measure.turns import bench

FALSE_CLAIMS, FOUND = 0.05, 0.90  # asked for


def main() -> int:
    """Measure, print the table, write the record."""
    asked = _arguments()
    earlier = (
        json.loads(asked.out.read_text()) if asked.more and asked.out.exists() else {"comparisons": [], "seconds": 0}
    )
    lives = earlier["comparisons"]
    with tempfile.TemporaryDirectory() as folder, plugged_in():
        artifact = asked.artifact or tiny_artifact(Path(folder) / "tiny")
        start = perf_counter()
        lives += [_life(asked, artifact, len(lives) + i) for i in range(asked.lives)]
    record = {
        "program": "a_a",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()},
        "environment": environment(),
        "seconds": perf_counter() - start + earlier["seconds"],
        **judged([c for life in lives for c in life]),
        "between_starts": between_starts(lives),
        "comparisons": lives,
    }
    _show(record)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(record) + "\n")
    return 0 if record["holds"] else 1


def _life(asked: argparse.Namespace, artifact: Path, life: int) -> list[dict[str, Any]]:
    """The comparisons of one start of the workers."""
    count = asked.comparisons // asked.lives
    shares = {"a": 0.0, "again": 0.0, "slowed": asked.slowdown}
    variants = [
        Variant(
            key=key,
            folder=str(artifact),
            runner="slowed",
            options={"inner": asked.runner, "share": share},
            batch=asked.batch,
            threads=asked.threads,
        )
        for key, share in shares.items()
    ]
    rows = bench(
        variants,
        rounds=count * asked.rounds,
        calls_per_round=asked.calls,
        turn_s=60.0,
        warm_s=2.0,
        seed=life,
        kinds=("call",),
    )
    for row in rows:
        if not row.done:
            raise SystemExit(f"{row.key}: {row.reason}")
    cuts = [slice(i * asked.rounds, (i + 1) * asked.rounds) for i in range(count)]
    return [_compared(rows, cut) for cut in cuts]


def _compared(rows: list[Measurement], cut: slice) -> dict[str, Any]:
    """{"again": interval, "slowed": interval} of how much longer a call takes than that of "a"; `bare` has the interval
    of the rounds alone, without what two processes of one program differ."""
    first, *others = (replace(row, call_s=row.call_s[cut]) for row in rows)
    found = {}
    for other in others:
        bare = speedup(other, first, "call", placement=0.0)
        found[other.key] = speedup(other, first, "call").to_json() | {"bare": [bare.low, bare.high]}
    return found


def judged(comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of claims with their 95 % binomial intervals (Clopper & Pearson 1934), and whether they are as asked."""
    bare = [not c["again"]["bare"][0] <= 1 <= c["again"]["bare"][1] for c in comparisons if "bare" in c["again"]]
    false = [not c["again"]["low"] <= 1 <= c["again"]["high"] for c in comparisons]
    found = [c["slowed"]["low"] > 1 for c in comparisons]
    ratios = {key: [c[key]["value"] for c in comparisons] for key in ("again", "slowed")}
    claims, finds = binomial(sum(false), len(false)), binomial(sum(found), len(found))
    return {
        "false_claims": claims,
        "found": finds,
        "false_claims_of_the_rounds_alone": binomial(sum(bare), len(bare)) if bare else None,
        "median_ratio": {key: float(np.median(values)) for key, values in ratios.items()},
        "median_half_width": float(np.median([(c["again"]["high"] - c["again"]["low"]) / 2 for c in comparisons])),
        "holds": claims["low"] <= FALSE_CLAIMS and finds["value"] >= FOUND,
    }


def between_starts(lives: list[list[dict[str, Any]]]) -> float | None:
    """Standard deviation of ln ratio between two processes of one program, over starts; None below two starts.

    The mean squares of the starts' means (of both pairs, the slowdown taken off by its mean over starts) less what the
    comparisons within a start scatter.
    """
    if len(lives) < 2:
        return None
    squares = []
    for key in ("again", "slowed"):
        logs = [np.log([c[key]["value"] for c in life]) for life in lives]
        means = np.array([x.mean() for x in logs])
        within = np.mean([x.var(ddof=1) / len(x) for x in logs])
        squares.append(means.var(ddof=1) - within)
    return float(np.sqrt(max(np.mean(squares), 0.0)))


def binomial(hits: int, n: int) -> dict[str, Any]:
    """The share with its exact 95 % interval."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(0.95, "exact")
    return {"value": hits / n, "low": float(interval.low), "high": float(interval.high), "n": n}


def tiny_artifact(folder: Path) -> Path:
    """An untrained network whose calls take under a millisecond, exported to ONNX: times do not depend on weights."""
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    from optimize.architectures.artifact import save_model
    from optimize.diffusion.context import Context
    from optimize.diffusion.sampling import Sampler
    from optimize.exporters.onnx import Onnx
    from optimize.sources.diffusers import DiffusersSource
    from optimize.storage.commit import commit

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(16, 1, 1, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, **blocks)
    unet.save_pretrained(folder / "source" / "unet")
    DDPMScheduler(clip_sample=False).save_pretrained(folder / "source" / "scheduler")
    model = DiffusersSource(folder / "source").load(Sampler(steps=2))

    def write(made: Path) -> dict[str, Any]:
        save_model(made, model)
        return {"id": "tiny", "export": Onnx().export(model, made, Context())}

    commit(folder / "artifact", write)
    return folder / "artifact"


def _show(record: dict[str, Any]) -> None:
    claims, found, ratio = record["false_claims"], record["found"], record["median_ratio"]
    print(f"{'':34}{'share':>8}{'95 % interval':>18}{'median ratio':>14}   asked")
    for name, value, key, wish in (
        ("claimed though nothing differs", claims, "again", f"interval reaches {FALSE_CLAIMS:.0%} or lies below"),
        (f"{record['settings']['slowdown']:.0%} slower, and found", found, "slowed", f"≥ {FOUND:.0%}"),
    ):
        interval = f"[{value['low']:.1%}, {value['high']:.1%}]"
        print(f"{name:34}{value['value']:8.1%}{interval:>18}{ratio[key]:14.4f}   {wish}")
    bare = record["false_claims_of_the_rounds_alone"]
    if bare:
        print(f"without what two processes differ: {bare['value']:.1%} claimed [{bare['low']:.1%}, {bare['high']:.1%}]")
    width, seconds = record["median_half_width"], record["seconds"]
    print(f"median half width of an A/A interval ±{width:.2%}; {claims['n']} comparisons in {seconds:.0f} s")
    if record["between_starts"] is not None:
        print(f"standard deviation between starts {record['between_starts']:.2%}, intervals allow for {PLACEMENT:.2%}")
    print("holds" if record["holds"] else "MISSED")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="artifact folder; a tiny untrained network where not given")
    parser.add_argument("--runner", default="onnxruntime")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--lives", type=int, default=10, help="how often the workers are started")
    parser.add_argument("--rounds", type=int, default=400, help="rounds of one comparison")
    parser.add_argument(
        "--calls", type=int, default=1, help="calls in a turn; few, so that turns of a round meet the same machine"
    )
    parser.add_argument("--slowdown", type=float, default=0.03)
    parser.add_argument("--out", type=Path, help="JSON record")
    parser.add_argument("--more", action="store_true", help="add to the comparisons that are in --out already")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
