"""report.md: the same findings as text, for a terminal, a pull request or a diff."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from optimize.measure import wording
from optimize.measure.wording import DASH
from optimize.report import columns, figures, layers, speedups, verdicts
from optimize.report.figures import Row, Summary
from optimize.report.html import fair_rows

HEADER = ("variant", "runner", "batch", "NFE", "size", "params", "MACs", "call ms p50 / p99", "image ms p50 / p99",
          "images/s", "peak memory", "FD", "PSNR dB", "× baseline", "× fair", "gates", "targets")  # fmt: skip


def render_markdown(summary: Summary) -> str:
    """The report of a summary as Markdown, misses first."""
    head = figures.headline(summary)
    parts = [
        f"# {summary.get('recipe') or 'run'}",
        _misses(summary),
        f"**~ {noise}**" if (noise := speedups.noise(summary)) else "",
        f"**{head.sentence}**\n\n{head.cost}".strip(),
        "## Gates and targets\n\n" + _checks(summary),
        "## Variants\n\n" + _variants(summary),
        _factors(summary),
        _samples(summary),
        _quality(summary),
        _by_layer(summary),
        "## Every measurement\n\n" + _every(summary),
        _refused(summary),
        _fair(summary),
        _stages(summary),
        _environment(summary),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def table(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A Markdown table; bars and line ends inside cells are made harmless."""
    names = list(header)
    lines = [names, ["---"] * len(names), *(list(row) for row in body)]
    return "\n".join("| " + " | ".join(_safe(cell) for cell in line) + " |" for line in lines)


def _safe(cell: str) -> str:
    return " ".join(str(cell).split()).replace("|", "\\|")


def _misses(summary: Summary) -> str:
    lines = [
        f"- ✗ **{'GATE FAILED' if c.kind == 'gate' else 'target missed'}**: {c.name} is {c.value}, asked for {c.sign} {c.limit}"
        + (f" ({c.note})" if c.note else "")
        for c in figures.misses(summary)
    ]
    flagged = {"failed": "- ✗ **The gates did not pass**", "missed": "- ✗ **The targets were not met**"}
    counts = [f"all {n} {kind}s hold" for kind in ("gate", "target") if (n := len(figures.checks(summary, kind)))]
    held = f"✓ {', '.join(counts)}".replace("targets hold", "targets are met") if counts else ""
    return "\n".join(lines) or flagged.get(figures.verdict(summary), held)


def _checks(summary: Summary) -> str:
    found = [c for kind in ("gate", "target") for c in figures.checks(summary, kind)]
    if not found:
        return "None was judged."
    body = ((c.kind, c.name, c.value, f"{c.sign} {c.limit}", _mark(c), c.note) for c in found)
    return table(("kind", "name", "value", "limit", "verdict", "note"), body)


def _mark(check: figures.Check) -> str:
    return {"holds": "✓ holds", "unknown": "not judged"}.get(check.verdict, f"✗ {check.verdict}")


def _variants(summary: Summary) -> str:
    batch = figures.headline_batch(summary)
    found = [r for v in figures.variants(summary) if (r := figures.shown(summary, v, batch)) is not None]
    if not found:
        return "No row has figures."
    about = f"At batch {batch}; the baseline in eager torch, every other variant on its fastest runner. `[low, high]` are 95 % intervals."
    return f"{about}\n\n{table(HEADER, (_cells(summary, r) for r in found))}"


def _every(summary: Summary) -> str:
    """All columns that any row has figures for, and how to read what is not plainly measured."""
    listed, rows = columns.table(summary)
    if not rows:
        return "The summary holds no rows."
    body = ([_marked(cell, row) for cell in row["cells"]] for row in rows)
    said = "`~` marks timings that other work on the machine disturbed. Rows marked *predicted* were not measured.\n\n"
    any_mark = figures.predicted(summary) or any(r.get("noisy") for r in figures.rows(summary))
    return (said if any_mark else "") + table((c["title"] for c in listed), body)


def _marked(cell: dict[str, object], row: dict[str, object]) -> str:
    text = f"{cell['text']} {cell['note']}".strip()
    return f"{text} *predicted*" if cell["key"] == "variant" and row["predicted"] else text


def _quality(summary: Summary) -> str:
    names, lines = verdicts.table(summary)
    if not lines:
        return ""
    body = [(f"{title} {arrow}".strip(), *(" ".join(p for p in (c[0], c[1] and f"({c[1]})", c[2]) if p) for c in cells)) for title, arrow, cells in lines]  # fmt: skip
    parts = ["## Quality", "Same seeds for every variant; Δ is the difference to the baseline under the same resampling.", table(("", *names), body)]  # fmt: skip
    for title, classes, rows in verdicts.by_class(summary):
        parts += [f"### {title} by class", table(("", *classes), ((v, *(t for t, _ in cells)) for v, cells in rows))]
    said = [*verdicts.notes(summary), *(f"judged by {line}" for line in verdicts.judges(summary))]
    return "\n\n".join([*parts, *(["\n".join(f"- {n}" for n in said)] if said else [])])


def _samples(summary: Summary) -> str:
    """Links to the grids, relative to the run's folder."""
    links = [f"![the same seeds through every variant]({name})" for name in summary.get("samples") or []]
    return "## Samples\n\n" + "\n\n".join(links) if links else ""


def _by_layer(summary: Summary) -> str:
    parts = []
    for section in layers.sections(summary):
        heading = f"## Layers{' of ' + section['name'] if section['name'] else ''}"
        body = ((r["path"], r["kind"], *(c["text"] for c in r["cells"])) for r in section["rows"][: section["shown"]])
        more = len(section["rows"]) - section["shown"]
        tail = f"\n\n{more} lighter layers are in summary.json." if more > 0 else ""
        parts.append(f"{heading}\n\n" + table(("layer", "kind", *(t for _, t in section["columns"])), body) + tail)
    return "\n\n".join(parts)


def _cells(summary: Summary, row: Row) -> list[str]:
    f, w = figures, wording
    return [
        f.any_text(row.get("variant")), f.runner(row), f.any_text(row.get("batch")), f.any_text(row.get("nfe")),
        w.bytes_text(row.get("size_bytes")), w.count_text(row.get("params")), w.count_text(row.get("macs")),
        *(f"{w.digits(f.latency(row, k, 'p50'))} / {w.digits(f.latency(row, k, 'p99'))}" for k in ("call", "image")),
        w.digits(row.get("images_per_s")) + (" (noisy)" if row.get("noisy") else ""),
        w.bytes_text(row.get("peak_memory_bytes")),
        _with_interval(f.quality(summary, row, "fd"), w.digits), w.digits(f.quality(summary, row, "psnr_db")),
        *(_with_interval(f.speedup(row, k), f.ratio_text) for k in ("vs_baseline", "vs_fair")),
        f.tally(row.get("gates")), f.tally(row.get("targets")),
    ]  # fmt: skip


def _with_interval(value: object, text: Callable[[object], str]) -> str:
    return f"{text(value)} {figures.interval_text(value)}".strip()


def _factors(summary: Summary) -> str:
    known = {k: v for k, v in speedups.factors(summary).items() if wording.number(v) is not None}
    if not known:
        return ""
    body = [(figures.plain(k), f"×{wording.digits(v)}", figures.interval_text(v)) for k, v in known.items()]
    whole = speedups.whole(summary)
    together = ("**all together**", f"**×{wording.digits(whole)}**", figures.interval_text(whole))
    return "## Factors of the speed-up\n\n" + table(("step", "factor", "95 % interval"), [*body, together])


def _refused(summary: Summary) -> str:
    return "\n".join(f"- {line}" for line in (*figures.lost(summary), *figures.rewritten(summary)))


def _fair(summary: Summary) -> str:
    found = fair_rows(summary)
    if not found:
        return ""
    f, w = figures, wording
    body = (
        (f.any_text(r.get("solver")), f.any_text(r.get("steps")), f.any_text(r.get("spacing")), f.any_text(r.get("guided")), f.any_text(r.get("nfe")),
         w.digits(r.get("fd")), w.percent_text(r.get("class_accuracy_min")),
         "**chosen**" if r["chosen"] else "passes" if r.get("passes") else str(r.get("reason") or "fails a gate"))
        for r in found
    )  # fmt: skip
    return "## The fair search\n\n" + table(
        ("solver", "steps", "spacing", "guided", "NFE", "FD", "worst class", "verdict"), body
    )


def _stages(summary: Summary) -> str:
    found = summary.get("stages") or []
    if not found:
        return ""
    f, w = figures, wording
    body = (
        (
            ": ".join(str(p) for p in (s.get("name") or DASH, (s.get("record") or {}).get("head")) if p),
            f"`{f.short_id(s.get('id'))}`",
            f"`{f.short_id(s.get('parent'))}`" if s.get("parent") else DASH,
            w.seconds_text(s.get("seconds")),
        )
        for s in found
    )
    return "## Stages\n\n" + table(("stage", "id", "from", "time"), body)


def _environment(summary: Summary) -> str:
    found = figures.flat(summary.get("environment") or {})
    return "## Environment\n\n" + table(("", ""), ((f.replace(".", " · "), v) for f, v in found)) if found else ""
