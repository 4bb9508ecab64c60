"""A plan on the terminal: what works on each target, what is predicted there side by side, and the recipe proposed."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

from optimize.measure import wording
from optimize.planning.propose import loss_text
from optimize.planning.subject import FEWEST
from optimize.report.terminal.tables import print_parts

if TYPE_CHECKING:
    from rich.console import Console

MARKS = {"works": "✓", "will not pay": "~", "impossible": "✗"}
STYLES = {"works": "green", "will not pay": "yellow", "impossible": "red"}
SHORT = {
    "torch": "PyTorch",
    "onnxruntime-cuda": "ORT CUDA",
    "onnxruntime-cpu": "ORT CPU",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TRT-RTX",
    "openvino": "OpenVINO",
}
NOT_HERE = "°"
WIDTH = 80
LEGEND = f"✓ works  ~ will not pay  ✗ impossible  {NOT_HERE} works there, but no pass, exporter or runner of this version does it"

HEADING = "Predicted, as it is sampled today: ms a batch (90 % interval), memory, file, cost of 1,000 images"


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Print the whole plan."""
    line = f"{plan['model']}: {wording.count_text(plan['params'])} parameters, {wording.count_text(plan['macs'])} MACs, {plan['nfe']} network evaluations an image, batch {plan['batch']}"
    console.print(_text(line, "bold"))
    for note in plan["notes"]:
        console.print(_text(f"note: {note}", "yellow"))
    for target in plan["targets"]:
        _print_matrix(target, console)
        for verdict, reason in _reasons(target):
            console.print(_text(f"{MARKS[verdict]} {reason}", STYLES[verdict]), soft_wrap=True)
    console.print(_text(LEGEND, "dim"), soft_wrap=True)
    if any(t["today"] for t in plan["targets"]):
        console.print(_text(HEADING, "bold"), soft_wrap=True)
        _print_predictions(plan, console)
    for target in plan["targets"]:
        for line in (*advice_lines(target), *proposal_lines(target)):
            console.print(_text(line), soft_wrap=True)


def advice_lines(target: dict[str, Any]) -> list[str]:
    """What to do, the free things first, at most 80 columns wide."""
    found = target.get("advice") or {}
    lines = [f"{target['title']}: what makes an image faster, free things first"] if found.get("proposed") else []
    for i, one in enumerate(found.get("proposed", ()), 1):
        lines += wrap(f"{i:3} {one['kind']}: {one['what']}", WIDTH, subsequent_indent=" " * 4)
        source = "measured" if one["measured"] else "predicted"
        times = f"{wording.digits(one['before_ms'])} to {_interval(one, ('ms', 'low_ms', 'high_ms'))} ms an image"
        about = f"{wording.digits(one['gain'])}× faster, {times}, {source}; {one['risk']}"
        lines += wrap(about, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4)
    if found.get("unproven"):
        named = ", ".join(one["what"] for one in found["unproven"])
        said = f"not proposed, since its gain lies within the interval of its own prediction: {named}"
        lines += wrap(f"{target['title']}: {said}", WIDTH, subsequent_indent=" " * 4)
    return lines


def _print_matrix(target: dict[str, Any], console: Console) -> None:
    """Formats against ways, a mark in every cell."""
    sm = f", SM {target['sm']}" if target["sm"] else ""
    formats = next(iter(target["ways"].values()))
    rows = [{"": f.upper()} | {SHORT[way]: mark(cells[f]) for way, cells in target["ways"].items()} for f in formats]
    print_parts(console, f"{target['title']}{sm}", "", [SHORT[way] for way in target["ways"]], rows)


def mark(cell: dict[str, Any]) -> str:
    """The sign of one cell."""
    return MARKS[cell["verdict"]] + (NOT_HERE if cell["verdict"] == "works" and not cell["runner"] else "")


def _reasons(target: dict[str, Any]) -> list[tuple[str, str]]:
    """(verdict, "what: why") once for every reason worth saying, the gravest first; passes after formats and ways."""
    told: dict[tuple[str, str], list[str]] = {}
    for way, row in target["ways"].items():
        for format, cell in row.items():
            if cell["rule"] not in ("a rate", "nothing against it"):
                about = {"way": SHORT[way], "format": format.upper(), "both": f"{format.upper()} in {SHORT[way]}"}
                told.setdefault((cell["verdict"], _why(cell)), []).append(about[cell["about"]])
    lines = [(verdict, f"{', '.join(dict.fromkeys(what))}: {why}") for (verdict, why), what in told.items()]
    lines += [(p["verdict"], f"{p['place']}: {_why(p)}") for p in target["passes"]]
    return sorted(lines, key=lambda line: -list(MARKS).index(line[0]))


def _why(cell: dict[str, Any]) -> str:
    return f"{cell['reason']} Instead: {cell['nearest']}." if cell["nearest"] else cell["reason"]


def _print_predictions(plan: dict[str, Any], console: Console) -> None:
    """Today's model in every format that pays: time of a batch, memory, size and cost, targets side by side."""
    titles = _distinct([t["title"] for t in plan["targets"]])
    rows = [
        {"": f.upper()}
        | {title: _forecast(t["today"].get(f)) for title, t in zip(titles, plan["targets"], strict=True)}
        for f in dict.fromkeys(f for t in plan["targets"] for f in t["today"])
    ]
    print_parts(console, "", "", titles, rows)


def _distinct(titles: list[str]) -> list[str]:
    """Titles made unique by a number where one comes twice."""
    return [t if titles.count(t) == 1 else f"{t} ({titles[: i + 1].count(t)})" for i, t in enumerate(titles)]


def _forecast(found: dict[str, Any] | None) -> str:
    if found is None:
        return wording.DASH
    time = _interval(found, ("latency_ms", "low_ms", "high_ms"))
    sizes = f"{wording.bytes_text(found['memory_bytes'])}, {wording.bytes_text(found['size_bytes'])}"
    return f"{time}\n{sizes}{_cost(found)}"


def _cost(found: dict[str, Any]) -> str:
    cost = found.get("cost_per_1000")
    return f"\n{_interval(cost, ('value', 'low', 'high'))} {cost['currency']}" if cost else ""


def _interval(found: dict[str, Any], keys: tuple[str, str, str]) -> str:
    value, low, high = (wording.digits(found[k]) for k in keys)
    return f"{value} ({low}–{high})"


def proposal_lines(target: dict[str, Any]) -> list[str]:
    """What is proposed for a target, in plain lines."""
    proposal = target["proposal"]
    notes = [f"note: {note}" for note in target["notes"]]
    if proposal is None:
        return [f"{target['title']}: {target['reason']}", *notes]
    if "forecast" not in proposal:
        return [f"{target['title']}: nothing is proposed: {'; '.join(proposal['needed'])}.", *notes]
    found = proposal["forecast"]
    verdict = "is predicted to meet the budget" if proposal["meets"] else "comes nearest, and misses the budget"
    if not proposal.get("asked", True):
        verdict = "is proposed, since nothing within the allowed loss is faster by more than its interval"
    if proposal["meets"] and not proposal["certain"]:
        verdict += ", though not at the end of its interval"
    made = f"{target['title']}: {_candidate(found)} {verdict}: "
    made += f"{_interval(found, ('latency_ms', 'low_ms', 'high_ms'))} ms, {wording.bytes_text(found['size_bytes'])}, "
    made += f"{loss_text(proposal['loss'], proposal['worst_loss'], found['candidate'].get('steps'))}; predicted"
    lines = [made + (f", calibrated by {found['calibrated']}" if found["calibrated"] else ""), *notes]
    if not proposal["runner"]:
        lines.append(
            f"note: this version has no runner for {SHORT[proposal['way']]} in {found['candidate']['format'].upper()}"
        )
    lines += [f"needed: {line}" for line in proposal["needed"]]
    return lines + ([f"fill in: {', '.join(proposal['to_fill_in'])}"] if proposal["to_fill_in"] else [])


def _candidate(found: dict[str, Any]) -> str:
    c = found["candidate"]
    parts = [f"{100 * c['share']:.0f} % of the MACs pruned"] if c["share"] else []
    parts += [f"distilled to {c['nfe']} evaluation{'s' * (c['nfe'] != 1)}"] if c["nfe"] else []
    parts += [f"{c['steps']} steps of {FEWEST}"] if c.get("steps") else []
    return ", ".join([*parts, c["format"].upper()])


def _text(line: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(line, style)
