"""report.html: one page that needs nothing but itself. Styles, script, charts and pictures are inside; it loads nothing."""

from __future__ import annotations

import base64
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from optimize.measure import wording
from optimize.report import charts, columns, figures, layers, speedups, verdicts
from optimize.report.figures import Summary

TEMPLATE = "page.html.jinja"
RECORD_CHARACTERS = 6000  # of a stage's record shown in full; the rest stays in the manifest
MIME = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


def render_html(summary: Summary, folder: Path | None = None) -> str:
    """The page of a summary. `folder` is the run's, for the pictures in `samples/`; without it they are left out."""
    listed, rows = columns.table(summary)
    return _template().render(
        recipe=str(summary.get("recipe") or "run"),
        summary=summary,
        subtitle=_subtitle(summary),
        verdict=figures.verdict(summary),
        headline=figures.headline(summary),
        noise=speedups.noise(summary),
        misses=figures.misses(summary),
        checks={kind: figures.checks(summary, kind) for kind in ("gate", "target")},
        waterfall=charts.waterfall(speedups.factors(summary), speedups.whole(summary)),
        pareto=charts.pareto(summary),
        layers=layers.sections(summary),
        columns=listed,
        rows=rows,
        rewritten=figures.rewritten(summary),
        batches=sorted({r["batch"] for r in figures.rows(summary) if isinstance(r.get("batch"), int)}),
        quality=verdicts.table(summary),
        by_class=verdicts.by_class(summary),
        notes=verdicts.notes(summary),
        judges=verdicts.judges(summary),
        pictures=pictures(summary, folder),
        stages=[_stage(s) for s in summary.get("stages") or []],
        fair=fair_rows(summary),
        half_split=summary.get("half_split_fd"),
        environment=figures.flat(summary.get("environment") or {}),
        f=figures,
        w=wording,
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
    time, nfe, fd = (x if (x := wording.number(k)) is not None else float("inf") for k in keys)
    return time, nfe, fd
