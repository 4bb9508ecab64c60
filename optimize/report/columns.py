"""The table of every measurement: its columns, and a row's cells as text with a value to sort by.

Columns that no row has figures for (95th percentile, cost, energy, …) are left out.
"""

from __future__ import annotations

from typing import Any

from optimize.measure import wording
from optimize.report import figures
from optimize.report.figures import Row, Summary

# key, title, what it is
COLUMNS = (
    (
        "variant",
        "Variant",
        "Stage of the recipe; fair is the fastest uncompressed FP32 configuration that passes the gates",
    ),
    ("runner", "Runner", "What executes the network"),
    ("precision", "Precision", "Of weights and activations"),
    ("head", "Head", "What the network's output means, where a pass changed it"),
    ("batch", "Batch", "Images drawn together"),
    ("sampler", "Sampler", "Solver × steps"),
    ("nfe", "NFE", "Network evaluations per image; a guided step is two"),
    ("rate", "Images/s", "Throughput at this batch"),
    ("base", "× baseline", "Images a second against the baseline (eager torch) at the same batch, 95 % interval"),
    ("fair", "× fair", "Images a second against the fair configuration at the same batch, 95 % interval"),
    ("fd", "FD", "Fréchet distance to all scans, lower is better"),
    ("worst", "Acc min", "Class accuracy of the worst class"),
    ("size", "Size", "Bytes of the file that the runner loads"),
    ("image50", "Image p50 ms", "A batch's time divided by its images, median"),
    ("image95", "Image p95", "A batch's time divided by its images, 95th percentile"),
    ("image99", "Image p99", "A batch's time divided by its images, 99th percentile"),
    ("call50", "Call p50 ms", "One network call at this batch, median"),
    ("call95", "Call p95", "One network call at this batch, 95th percentile"),
    ("call99", "Call p99", "One network call at this batch, 99th percentile"),
    ("cost", "Cost / 1,000", "Price of 1,000 images, from the price table"),
    ("energy", "Energy J", "Joules per image"),
    ("accuracy", "Acc", "Share of images in which an independent classifier sees the class asked for"),
    ("psnr", "PSNR dB", "Drift: same seeds against the baseline's images, higher is nearer"),
    ("ssim", "SSIM", "Drift: structural similarity to the baseline's images"),
    ("params", "Params", "Parameters"),
    ("macs", "MACs", "Multiply-accumulates of one network call for one sample"),
    ("memory", "Peak mem", "Of the worker process"),
    ("parity", "Parity", "Relative L2 distance to the torch network, worst noise level"),
    ("gates", "Gates", "Gates held of those judged on this row"),
    ("targets", "Targets", "Targets met of those judged on this row"),
    ("status", "Status", "done, predicted, or refused or failed with the reason below the table"),
)
TEXT = {"variant", "runner", "precision", "head", "sampler", "gates", "targets", "status"}
MAIN = {"variant", "runner", "precision", "batch", "nfe", "rate", "base", "fair", "fd", "worst", "size", "image50", "image99", "status"}  # printed on paper too  # fmt: skip


def table(summary: Summary) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(columns, rows): a column is {key, title, about, text, main}; a row {variant, batch, best, predicted, status,
    runner, reason, cells}, a cell {key, text, sort, note} with `sort` a number or text, None for nothing."""
    every = [(r, _cells(summary, r)) for r in in_order(summary)]
    kept = [c for c in COLUMNS if any(cells[c[0]]["sort"] is not None for _, cells in every)]
    if len({r["head"] for r, _ in every if r.get("head")}) < 2:
        kept = [c for c in kept if c[0] != "head"]
    listed: list[dict[str, Any]] = [
        {"key": k, "title": t, "about": a, "text": k in TEXT, "main": k in MAIN} for k, t, a in kept
    ]
    batches = {r.get("batch") for r, _ in every}
    stand = {id(s) for v in figures.variants(summary) for b in batches if (s := figures.shown(summary, v, b))}
    return listed, [
        {"variant": r.get("variant"), "batch": r.get("batch"), "best": id(r) in stand, "status": figures.status(r),
         "predicted": bool(r.get("predicted")), "runner": figures.runner(r), "reason": r.get("reason") or "no reason given",
         "cells": [{"key": c["key"], **cells[c["key"]]} for c in listed]}
        for r, cells in every
    ]  # fmt: skip


def in_order(summary: Summary) -> list[Row]:
    """Rows along the recipe's way; those without figures last."""
    names = figures.variants(summary)
    return sorted(
        figures.rows(summary), key=lambda r: (figures.status(r) != "done", names.index(str(r.get("variant"))))
    )


def _cells(summary: Summary, row: Row) -> dict[str, dict[str, Any]]:
    cells = {**_identity_cells(row), **_cost_cells(row), **_quality_cells(summary, row)}
    for key in ("base", "fair"):
        value = figures.speedup(row, {"base": "vs_baseline", "fair": "vs_fair"}[key])
        cells[key] = _cell(figures.ratio_text(value), wording.number(value), figures.interval_text(value))
    state = figures.status(row)
    text = "predicted" if row.get("predicted") and state == "done" else state
    return cells | {"status": _cell(text, text, "noisy" if row.get("noisy") else "")}


def _cell(text: str, sort: Any, note: str = "") -> dict[str, Any]:
    return {"text": text, "sort": sort, "note": note}


def _identity_cells(row: Row) -> dict[str, dict[str, Any]]:
    sampler = f"{row.get('solver') or wording.DASH} × {row.get('steps') or wording.DASH}"
    texts = {"runner": figures.runner(row), **{k: row.get(k) for k in ("variant", "precision", "head")}}
    found = {k: _cell(figures.any_text(v), v) for k, v in texts.items()}
    for key in ("batch", "nfe"):
        found[key] = _cell(figures.any_text(row.get(key)), wording.number(row.get(key)))
    for key in ("gates", "targets"):
        text = figures.tally(row.get(key))
        found[key] = _cell(text, None if text == wording.DASH else text)
    return found | {"sampler": _cell(sampler, sampler if row.get("solver") else None)}


def _cost_cells(row: Row) -> dict[str, dict[str, Any]]:
    plain = {"rate": "images_per_s", "cost": "cost_per_1000", "energy": "energy_j"}
    found = {k: _cell(wording.digits(row.get(name)), wording.number(row.get(name))) for k, name in plain.items()}
    if row.get("noisy"):
        found["rate"]["text"] += " ~"
    for key, name in (("size", "size_bytes"), ("memory", "peak_memory_bytes")):
        found[key] = _cell(wording.bytes_text(row.get(name)), wording.number(row.get(name)))
    for key in ("params", "macs"):
        found[key] = _cell(wording.count_text(row.get(key)), wording.number(row.get(key)))
    for kind in ("call", "image"):
        for percentile in (50, 95, 99):
            value = figures.latency(row, kind, f"p{percentile}")
            found[f"{kind}{percentile}"] = _cell(wording.digits(value), value)
    return found


def _quality_cells(summary: Summary, row: Row) -> dict[str, dict[str, Any]]:
    def of(key: str) -> Any:
        return figures.quality(summary, row, key)

    parity = wording.number((row.get("parity") or {}).get("relative_l2"))
    found = {"parity": _cell(wording.digits(parity, 2), parity)}
    for key, name in (("fd", "fd"), ("psnr", "psnr_db"), ("ssim", "ssim")):
        found[key] = _cell(wording.digits(of(name)), wording.number(of(name)), figures.interval_text(of(name)))
    for key, name in (("accuracy", "class_accuracy"), ("worst", "class_accuracy_min")):
        found[key] = _cell(wording.percent_text(of(name)), wording.number(of(name)))
    return found
