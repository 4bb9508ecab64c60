"""The page in a browser: sorting, filtering, no errors, nothing loaded, no sideways scrolling at 1280 and 390 pixels."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.summaries import PIXEL, richer_summary

from optimize.report.html import render_html

BROWSER = next((b for n in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--window-size=1280,900")  # fmt: skip
CLICKS = """
  const click = (s) => document.querySelector(s).click();
  const body = document.getElementById('rows').tBodies[0], filter = document.getElementById('filter');
  const column = (key) => [...document.querySelectorAll('#rows th')].findIndex((h) => h.dataset.key === key);
  const read = (key) => [...body.rows].map((r) => r.cells[column(key)].dataset.v ?? 'none');
  const shown = () => [...body.rows].filter((r) => r.offsetParent);
  const type = (text) => { filter.value = text; filter.dispatchEvent(new Event('input')); };
  click('th[data-key=rate] button'); said.up = read('rate');
  click('th[data-key=rate] button'); said.down = read('rate');
  click('th[data-key=runner] button'); said.names = read('runner');
  said.marked = document.querySelectorAll('#rows [aria-sort]').length;
  click('[data-show="1"]'); said.batches = shown().map((r) => r.dataset.batch);
  type('openvino FP32'); said.both = shown().map((r) => r.textContent.toLowerCase().includes('openvino') && r.dataset.batch === '1');
  said.count = document.getElementById('shown').textContent;
  type('no such words'); said.none = shown().length;
  type(''); click('[data-show=best]'); said.best = shown().length;
  click('#layers ~ .scroll th[data-key=macs] button');
  said.layers = [...document.querySelector('#layers ~ .scroll table').tBodies[0].rows].map((r) => r.cells[0].textContent);
"""
FITS = """
  said.width = document.documentElement.scrollWidth; said.window = innerWidth;
  said.loaded = performance.getEntriesByType('resource').map((e) => e.name).filter((n) => !n.startsWith('data:'));
  said.overlaps = [...document.querySelectorAll('svg')].map(overlaps).flat();
"""
OVERLAPS = """
  const overlaps = (svg) => {
    const texts = [...svg.querySelectorAll('text')].map((t) => [t.textContent, t.getBoundingClientRect()]);
    const hit = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2;
    return texts.flatMap(([s, a], i) => texts.slice(i + 1).filter(([, b]) => hit(a, b)).map(([t]) => `${s} / ${t}`));
  };
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    (folder / "samples").mkdir()
    (folder / "samples" / "grid.png").write_bytes(PIXEL)
    return render_html(richer_summary(), folder)


def opened(page: str, folder: Path, script: str, width: int = 0) -> tuple[dict[str, Any], str]:
    """(what the script put into `said`, console messages); in a frame of `width` pixels where one is given."""
    said = f"<script>const said = {{}};{OVERLAPS}{script};top.document.title = JSON.stringify(said)</script>"
    text = page.replace("</body>", f"{said}</body>")
    if width:
        frame = f'<iframe style="border:0;width:{width}px;height:800px" srcdoc="{html.escape(text)}"></iframe>'
        text = f"<!doctype html><title></title><body style='margin:0'>{frame}</body>"
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [str(BROWSER), *FLAGS, profile, "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    return json.loads(html.unescape(title)), "\n".join(x for x in done.stderr.splitlines() if "CONSOLE" in x)


def test_clicks_sort_and_words_and_chips_filter(page: str, tmp_path: Path) -> None:
    said, console = opened(page, tmp_path, CLICKS)
    rates = [float(v) for v in said["up"] if v != "none"]
    assert rates == sorted(rates) and len(rates) == len(richer_summary()["rows"]) - 1
    assert [float(v) for v in said["down"] if v != "none"] == rates[::-1]
    assert said["up"][-1] == said["down"][-1] == "none", "rows without the figure stay last"
    assert said["names"] == sorted(said["names"]) and said["marked"] == 1
    assert set(said["batches"]) == {"1"} and said["both"] and all(said["both"])
    assert said["count"] == f"{len(said['both'])} of {len(richer_summary()['rows'])} rows" and said["none"] == 0
    assert 7 <= said["best"] < len(rates)
    assert said["layers"] == ["down.0", "down.1", "down.2"]
    assert console == ""


@pytest.mark.parametrize("width", [0, 390])
def test_the_page_fits_loads_nothing_and_no_label_lies_on_another(page: str, tmp_path: Path, width: int) -> None:
    said, console = opened(page, tmp_path, FITS, width)
    assert said["window"] == (width or 1280)
    assert said["width"] <= said["window"], "the page scrolls sideways"
    assert said["loaded"] == [] and console == ""
    assert said["overlaps"] == []


def test_the_check_sees_an_error_and_a_request(page: str, tmp_path: Path) -> None:
    broken = page.replace("</main>", "<img src='https://example.invalid/x.png'></main><script>nothing.at.all</script>")
    _, console = opened(broken, tmp_path, FITS)
    assert "nothing is not defined" in console and "Content Security Policy" in console
