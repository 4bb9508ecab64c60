"""Cost of 1,000 images in the rows of summary.json: where the class has a price, and what is said where it has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.measure.record import Measurement, Variant
from optimize.recipes.read import load
from optimize.runs.summary import Findings, _cost

TABLE = "currency: EUR\nprices:\n  cpu: {per_core_hour: 3.6, source: invoice, date: 2026-01}\n"


def measured(device: str = "cpu", threads: int | None = None) -> Measurement:
    """4 images a batch in 2 s, on a machine of 8 cores and an A100."""
    variant = Variant(key="final/x/4", folder="f", runner="x", batch=4, threads=threads)
    environment = {"device": "a100", "cores": 8}
    return Measurement(variant, image_s=[[2.0, 2.0], [1.6, 2.5]], runner={"device": device}, environment=environment)


@pytest.fixture
def found(tmp_path: Path) -> Findings:
    (tmp_path / "prices.yaml").write_text(TABLE)
    recipe = load("smoke").model_copy(update={"prices": tmp_path / "prices.yaml"})
    return Findings(recipe, [], {}, {}, [])


def test_a_row_has_its_cost_with_the_interval_of_its_rate(found: Findings) -> None:
    cost = _cost(found, measured())["cost_per_1000"]
    assert cost["value"] == pytest.approx(8 * 0.001 * 1000 / 2)  # 8 cores of 0.001 EUR a second, 2 images a second
    rate = measured().images_per_s()
    assert (cost["low"], cost["high"]) == pytest.approx((8 / rate.high, 8 / rate.low))
    assert cost["low"] < cost["value"] < cost["high"]
    assert cost["currency"] == "EUR"


def test_a_row_pays_for_the_cores_it_used(found: Findings) -> None:
    assert _cost(found, measured(threads=2))["cost_per_1000"]["value"] == pytest.approx(1.0)


def test_a_row_on_a_class_without_a_price_says_which_and_how_to_add_it(found: Findings) -> None:
    row = _cost(found, measured("cuda:0"))
    assert set(row) == {"cost_missing"}
    assert row["cost_missing"].startswith("no price for a100 in ") and "Add `a100: {per_hour" in row["cost_missing"]
