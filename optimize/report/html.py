"""report.html: one page that needs nothing but itself. Styles, script, charts and pictures are inside; it loads nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from optimize.report import charts, figures
from optimize.report.figures import Row, Summary

TEMPLATE = "page.html.jinja"
RECORD_CHARACTERS = 6000  # of a stage's record shown in full; the rest stays in the manifest
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}

# key, title, what it is
COLUMNS = (
    (
        "variant",
        "Variant",
        "Stage of the recipe; fair is the fastest uncompressed FP32 configuration that passes the gates",
    ),
    ("runner", "Runner", "What executes the network"),
    ("precision", "Precision", "Of weights and activations"),
    ("batch", "Batch", "Images drawn together"),
    ("sampler", "Sampler", "Solver × steps"),
    ("nfe", "NFE", "Network evaluations per image; a guided step is two"),
    ("rate", "Images/s", "Throughput at this batch"),
    ("base", "× baseline", "Images a second against the baseline (eager torch) at the same batch, 95 % interval"),
    ("fair", "× fair", "Images a second against the fair configuration at the same batch, 95 % interval"),
    ("fd", "FD", "Fréchet distance to all scans, lower is better"),
    ("worst", "Acc min", "The same for the worst class"),
    ("size", "Size", "Bytes of the file that the runner loads"),
    ("image50", "Image p50 ms", "A batch's time divided by its images, median"),
    ("image99", "Image p99", "A batch's time divided by its images, 99th percentile"),
    ("call50", "Call p50 ms", "One network call at this batch, median"),
    ("call99", "Call p99", "One network call at this batch, 99th percentile"),
    ("accuracy", "Acc", "Share of images in which an independent classifier sees the class asked for"),
    ("psnr", "PSNR dB", "Drift: same seeds against the baseline's images, higher is nearer"),
    ("ssim", "SSIM", "Drift: structural similarity to the baseline's images"),
    ("params", "Params", "Parameters"),
    ("macs", "MACs", "Multiply-accumulates of one network call for one sample"),
    ("memory", "Peak mem", "Of the worker process"),
    ("parity", "Parity", "Relative L2 distance to the torch network, worst noise level"),
    ("gates", "Gates", "Gates held of those judged on this row"),
    ("targets", "Targets", "Targets met of those judged on this row"),
    ("status", "Status", "done, or refused or failed with the reason"),
)
QUALITY = (
    ("fd", "FD"),
    ("fd_held_out", "FD held-out"),
    ("fd_training", "FD training"),
    ("kid", "KID"),
    ("class_accuracy", "Accuracy"),
    ("class_accuracy_min", "Worst class"),
    ("psnr_db", "PSNR dB"),
    ("ssim", "SSIM"),
    ("endpoint_error", "Endpoint error"),
)
TEXT_COLUMNS = {"variant", "runner", "precision", "sampler", "gates", "targets", "status"}


def render_html(summary: Summary, folder: Path | None = None) -> str:
    """The page of a summary. `folder` is the run's, for the pictures in `samples/`; without it they are left out."""
    return _template().render(
        recipe=str(summary.get("recipe") or "run"),
        subtitle=_subtitle(summary),
        verdict=figures.verdict(summary),
        headline=figures.headline(summary),
        misses=figures.misses(summary),
        checks={kind: figures.checks(summary, kind) for kind in ("gate", "target")},
        waterfall=charts.waterfall(summary.get("factors") or {}),
        pareto=charts.pareto(summary),
        columns=[(k, title, about, k in TEXT_COLUMNS) for k, title, about in COLUMNS],
        rows=_rows(summary),
        rewritten=figures.rewritten(summary),
        batches=sorted({r["batch"] for r in figures.rows(summary) if isinstance(r.get("batch"), int)}),
        quality=_quality_table(summary),
        quality_names=[title for _, title in QUALITY],
        pictures=pictures(summary, folder),
        stages=[_stage(s) for s in summary.get("stages") or []],
        fair=fair_rows(summary),
        half_split=summary.get("half_split_fd"),
        environment=figures.flat(summary.get("environment") or {}),
        f=figures,
    )


@lru_cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8"))


def _subtitle(summary: Summary) -> str:
    environment = summary.get("environment") or {}
    machine = [environment.get(k) for k in ("gpu", "cpu", "device")]
    targets = {str(r["target"]) for r in figures.rows(summary) if r.get("target")}
    cores = f"{environment['cores']} cores" if environment.get("cores") else ""
    parts = [next((str(m) for m in machine if m), ""), cores, f"target {', '.join(sorted(targets))}" if targets else ""]
    return " · ".join(p for p in parts if p)


def _rows(summary: Summary) -> list[dict[str, Any]]:
    """Rows as cells: `text`, `sort` (a number or text, None for nothing) and `note` (second line)."""
    stand = {id(s) for v in figures.variants(summary) for b in _batches(summary) if (s := figures.shown(summary, v, b))}
    return [
        {"variant": r.get("variant"), "batch": r.get("batch"), "best": id(r) in stand, "cells": _cells(summary, r),
         "status": figures.status(r), "runner": figures.runner(r), "reason": r.get("reason") or "no reason given"}
        for r in figures.rows(summary)
    ]  # fmt: skip


def _batches(summary: Summary) -> set[Any]:
    return {r.get("batch") for r in figures.rows(summary)}


def _cells(summary: Summary, row: Row) -> list[dict[str, Any]]:
    cells = {**_identity_cells(row), **_cost_cells(row), **_quality_cells(summary, row)}
    for key in ("base", "fair"):
        value = figures.speedup(row, {"base": "vs_baseline", "fair": "vs_fair"}[key])
        cells[key] = _cell(figures.ratio_text(value), figures.number(value), figures.interval_text(value))
    status, reason = figures.status(row), str(row.get("reason") or "")
    marks = [m for m, on in (("noisy", row.get("noisy")), ("predicted", row.get("predicted"))) if on]
    cells["status"] = _cell(status, status, reason or ", ".join(marks))
    return [{"key": key, **cells[key]} for key, _, _ in COLUMNS]


def _cell(text: str, sort: Any, note: str = "") -> dict[str, Any]:
    return {"text": text, "sort": sort, "note": note}


def _identity_cells(row: Row) -> dict[str, dict[str, Any]]:
    sampler = f"{row.get('solver') or figures.DASH} × {row.get('steps') or figures.DASH}"
    texts = {"variant": row.get("variant"), "runner": figures.runner(row), "precision": row.get("precision")}
    found = {k: _cell(figures.any_text(v), v) for k, v in texts.items()}
    for key in ("batch", "nfe"):
        found[key] = _cell(figures.any_text(row.get(key)), figures.number(row.get(key)))
    for key in ("gates", "targets"):
        text = figures.tally(row.get(key))
        found[key] = _cell(text, None if text == figures.DASH else text)
    return found | {"sampler": _cell(sampler, sampler if row.get("solver") else None)}


def _cost_cells(row: Row) -> dict[str, dict[str, Any]]:
    found = {
        "size": _cell(figures.bytes_text(row.get("size_bytes")), figures.number(row.get("size_bytes"))),
        "params": _cell(figures.count_text(row.get("params")), figures.number(row.get("params"))),
        "macs": _cell(figures.count_text(row.get("macs")), figures.number(row.get("macs"))),
        "rate": _cell(figures.digits(row.get("images_per_s")), figures.number(row.get("images_per_s"))),
        "memory": _cell(figures.bytes_text(row.get("peak_memory_bytes")), figures.number(row.get("peak_memory_bytes"))),
    }
    for kind in ("call", "image"):
        for percentile in (50, 99):
            value = figures.latency(row, kind, f"p{percentile}")
            found[f"{kind}{percentile}"] = _cell(figures.digits(value), value)
    return found


def _quality_cells(summary: Summary, row: Row) -> dict[str, dict[str, Any]]:
    def of(key: str) -> Any:
        return figures.quality(summary, row, key)

    parity = figures.number((row.get("parity") or {}).get("relative_l2"))
    found = {"parity": _cell(figures.digits(parity, 2), parity)}
    for key, name in (("fd", "fd"), ("psnr", "psnr_db"), ("ssim", "ssim")):
        found[key] = _cell(figures.digits(of(name)), figures.number(of(name)), figures.interval_text(of(name)))
    for key, name in (("accuracy", "class_accuracy"), ("worst", "class_accuracy_min")):
        found[key] = _cell(figures.percent_text(of(name)), figures.number(of(name)))
    return found


def _quality_table(summary: Summary) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """For every variant with quality: (value, its interval, its difference to the baseline with interval) by figure."""
    batch, found = figures.headline_batch(summary), []
    for variant in figures.variants(summary):
        row = figures.shown(summary, variant, batch)
        differences = {} if variant == "baseline" else figures.quality(summary, row, "difference") or {}
        cells = [_figure(k, figures.quality(summary, row, k), differences.get(k)) for k, _ in QUALITY]
        if any(value != figures.DASH for value, _, _ in cells):
            found.append((variant, cells))
    return found


def _figure(key: str, value: Any, difference: Any) -> tuple[str, str, str]:
    text = figures.percent_text if key.startswith("class_accuracy") else figures.digits
    low, high = figures.bounds(value)
    interval = "" if low is None else f"{text(low)} to {text(high)}"
    if figures.number(difference) is None:
        return text(value), interval, ""
    low, high = figures.bounds(difference)
    change = f"Δ {_signed(text, difference)}" + (
        "" if low is None else f" [{_signed(text, low)}, {_signed(text, high)}]"
    )
    return text(value), interval, change


def _signed(text: Callable[[Any], str], value: Any) -> str:
    return ("+" if (figures.number(value) or 0) > 0 else "") + text(value).replace("-", "−")


def pictures(summary: Summary, folder: Path | None) -> list[tuple[str, str]]:
    """(caption, data URI) of the sample grids the summary names, or of all in `folder/samples`; missing ones are skipped."""
    if folder is None:
        return []
    named = [folder / str(name) for name in summary.get("samples") or []]
    files = named or sorted((folder / "samples").glob("*.png"))
    return [(figures.plain(p.stem), data_uri(p)) for p in files if p.is_file() and p.suffix in MIME]


def data_uri(path: Path) -> str:
    """A picture as a data: address."""
    return f"data:{MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage with the plain values of its record apart, and its whole record as text (cut where long)."""
    record = stage.get("record") or {}
    facts = [(figures.plain(k), figures.any_text(v)) for k, v in record.items() if not isinstance(v, dict | list)]
    text = (
        json.dumps(record, indent=1, ensure_ascii=False)
        if any(isinstance(v, dict | list) for v in record.values())
        else ""
    )
    cut = len(text) - RECORD_CHARACTERS
    if cut > 0:
        text = f"{text[:RECORD_CHARACTERS]}\n… {cut:,} more characters in the variant's manifest.json"
    return {**{k: stage.get(k) for k in ("name", "id", "parent", "seconds", "cached")}, "facts": facts, "text": text}


def fair_rows(summary: Summary) -> list[dict[str, Any]]:
    """The fair search as found, each with `chosen`: the one that became the fair row."""
    found = [r for r in summary.get("fair_search") or [] if isinstance(r, dict)]
    fair = next((r for r in figures.done(summary) if r.get("variant") == "fair"), {})
    passing = [r for r in found if r.get("passes")]
    same = [r for r in passing if all(r.get(k) == fair.get(k) for k in ("solver", "steps", "nfe"))] or passing
    best = min(same, key=_fair_order, default=None)
    return [r | {"chosen": r is best} for r in found]


def _fair_order(row: dict[str, Any]) -> tuple[float, float, float]:
    keys = (row.get("predicted_image_ms"), row.get("nfe"), row.get("fd"))
    time, nfe, fd = (x if (x := figures.number(k)) is not None else float("inf") for k in keys)
    return time, nfe, fd
