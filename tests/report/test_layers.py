"""The per-layer section: order, shares, the picture by kind, and summaries with holes."""

from __future__ import annotations

import pytest
from support.summaries import richer_summary, whole_summary

from optimize.report import layers
from optimize.report.html import render_html
from optimize.report.markdown import render_markdown


def test_layers_stand_heaviest_first_with_their_share_and_a_picture_by_kind() -> None:
    (section,) = layers.sections(richer_summary())
    assert [r["path"] for r in section["rows"]] == ["down.0", "down.2", "down.1"]
    assert [k for k, _ in section["columns"]] == ["macs", "params", "bytes", "share_time"]
    assert [c["text"] for c in section["rows"][0]["cells"]] == ["1.00", "0", "0 B", "50.0 %"]
    assert section["rows"][1]["cells"][0]["share"] == 1.0 and section["rows"][2]["cells"][0]["share"] == 0.1
    assert "Linear: 9.0 % of MACs" in section["svg"] and "GroupNorm: 40.0 % of time" in section["svg"]
    page, text = render_html(richer_summary()), render_markdown(richer_summary())
    assert 'id="layers"' in page and "## Layers" in text and "| down.2 | GroupNorm | 100 |" in text
    assert 'id="layers"' not in render_html(whole_summary()) and "## Layers" not in render_markdown(whole_summary())


def test_layers_may_come_by_network_and_with_holes() -> None:
    named = {
        "layers": {
            "baseline": [{"path": "a", "kind": None, "macs": None}],
            "final": [{"kind": "Conv2d", "extra": 3}, "junk"],
            "none": [],
        }
    }
    assert [s["name"] for s in layers.sections(named)] == ["baseline", "final"]
    assert render_html(named) and render_markdown(named)
    many = [{"path": str(i), "kind": f"kind{i}", "macs": 1} for i in range(20)]
    assert "14 other kinds" in layers.picture(many) and "5 lighter layers" in render_markdown({"layers": many})


@pytest.mark.parametrize("key", ["path", "kind", "macs", "params", "bytes", "share_time"])
def test_every_report_survives_layers_that_lack_a_key(key: str) -> None:
    rich = richer_summary()
    for value in (None, "odd"):
        for layer in rich["layers"]:
            layer[key] = value
        assert render_markdown(rich) and render_html(rich)
