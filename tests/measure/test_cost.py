"""Cost of 1,000 images: the arithmetic, the interval, tables with holes and malformed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.errors import UserError
from optimize.hardware.targets import targets
from optimize.measure.cost import Prices, load_prices
from optimize.measure.statistics import Interval

TABLE = """
currency: EUR
prices:
  a100: {per_hour: 3.6, source: invoice, date: 2026-01-31}
  cpu: {per_core_hour: 0.036, source: invoice, date: 2026-01}
"""


@pytest.fixture
def table(tmp_path: Path) -> Prices:
    (tmp_path / "mine.yaml").write_text(TABLE)
    return load_prices(tmp_path / "mine.yaml")


def problems(tmp_path: Path, text: str) -> str:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_prices(tmp_path / "bad.yaml")
    return str(caught.value)


def test_a_thousand_images_cost_their_seconds(table: Prices) -> None:
    cost = table.per_1000("a100", Interval(4.0, 2.0, 8.0, 9))  # 0.001 EUR a second, 250 s
    assert cost is not None
    assert (cost["value"], cost["low"], cost["high"]) == pytest.approx((0.25, 0.125, 0.5))
    assert (cost["currency"], cost["source"], cost["date"]) == ("EUR", "invoice", "2026-01-31")


def test_a_cpu_is_paid_by_the_core(table: Prices) -> None:
    one, four = (table.per_1000("cpu", Interval(1, 1, 1, 1), cores=n) for n in (1, 4))
    assert one is not None and four is not None
    assert one["value"] == pytest.approx(0.01) and four["value"] == pytest.approx(0.04)


def test_a_class_without_a_price_has_no_cost_and_says_how_to_add_it(table: Prices) -> None:
    assert table.per_1000("v100", Interval(1, 1, 1, 1)) is None
    assert "no price for v100 in " in table.missing("v100")
    assert "Add `v100: {per_hour: …, source: …, date: …}`" in table.missing("v100")
    assert "--prices" in table.missing("v100") and "per_core_hour" in table.missing("cpu")


def test_the_shipped_table_prices_every_class_with_source_and_date() -> None:
    shipped = load_prices()
    assert set(shipped.prices) == set(targets())
    assert all(p.source and p.date for p in shipped.prices.values())
    assert [n for n, p in shipped.prices.items() if p.per_core_hour] == ["cpu"]


def test_every_problem_of_a_table_is_reported_at_once(tmp_path: Path) -> None:
    text = """
currency: euro
price: {}
prices:
  A100: {per_hour: 1, source: x, date: 2026-01}
  v100: {per_hour: -1, source: x, date: 2026-01}
  t4: {per_hour: 1, per_core_hour: 1, source: x, date: 2026-01}
  l4: {per_hour: 1, date: yesterday}
  h100: {per_hours: 1, source: x, date: 2026-13}
"""
    message = problems(tmp_path, text)
    for part in (
        "currency: given 'euro'",
        "price: unknown key. Allowed: currency, prices.",
        'prices.A100: "A100" is not known. Did you mean "a100"?',
        "prices.v100.per_hour: given -1",
        "prices.t4: given",
        "give either per_hour or per_core_hour",
        "prices.l4.source: missing",
        "prices.l4.date: given 'yesterday'. a date is written",
        'prices.h100.per_hours: unknown key. Allowed: per_hour, per_core_hour, source, date. Did you mean "per_hour"?',
        "prices.h100.date: given '2026-13'",
    ):
        assert part in message, part


def test_a_gpu_of_no_listed_class_may_have_a_price(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TABLE + "  rtx-5090: {per_hour: 1, source: x, date: 2026-01}\n")
    cost = load_prices(tmp_path / "p.yaml").per_1000("rtx-5090", Interval(1, 1, 1, 1))
    assert cost is not None and cost["value"] == pytest.approx(1000 / 3600)


@pytest.mark.parametrize(
    ("text", "part"),
    [("- a", "found list"), ("", "found NoneType"), ("a: [", "not valid YAML"), ("prices: 3", "prices")],
)
def test_what_is_no_table_is_said(text: str, part: str, tmp_path: Path) -> None:
    assert part in problems(tmp_path, text)


def test_a_missing_table_is_said() -> None:
    with pytest.raises(UserError, match=r"prices: no such file: nowhere.yaml. Copy the shipped prices.yaml"):
        load_prices("nowhere.yaml")
