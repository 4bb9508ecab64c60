"""What images cost: a price table by device class, and images a second with their interval. Torch-free.

cost of 1,000 images = price of an hour / 3600 * 1000 / images a second
"""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from optimize.configs import Config
from optimize.errors import NAMES, UserError, cut, did_you_mean, shown
from optimize.hardware.targets import targets
from optimize.measure.statistics import Interval
from optimize.plain.text import LARGEST_YAML, parse_yaml, read_text

SHIPPED = "prices.yaml"


def _date(value: str) -> str:
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])(-\d{2})?", value):
        raise ValueError("a date is written 2025-06 or 2025-06-30")
    return value


class Price(Config):
    """What one device of a class costs, where the figure is from, and of when."""

    per_hour: Annotated[float, Field(gt=0, le=1e9)] | None = None  # one GPU
    per_core_hour: Annotated[float, Field(gt=0, le=1e9)] | None = None  # one CPU core that the system shows
    source: Annotated[str, Field(min_length=1)]
    date: Annotated[str, AfterValidator(_date)]

    @model_validator(mode="after")
    def _one(self) -> Price:
        if (self.per_hour is None) == (self.per_core_hour is None):
            raise ValueError("give either per_hour or per_core_hour")
        return self

    def of_hour(self, cores: int) -> float:
        """The price of an hour of the device, or of `cores` cores of it."""
        return self.per_hour if self.per_hour is not None else (self.per_core_hour or 0) * cores


class Prices(Config):
    """A price table. Classes may be missing; what runs on those has no cost."""

    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]  # ISO 4217: USD, EUR, …
    prices: dict[str, Price]
    where: str = SHIPPED  # the file

    def per_1000(self, device_class: str, images_per_s: Interval, cores: int = 1) -> dict[str, Any] | None:
        """`{value, low, high, currency, source, date}` of 1,000 images; low is the cost at the highest rate of the
        interval. None where the class has no price."""
        price = self.prices.get(device_class)
        if price is None:
            return None
        second = price.of_hour(cores) / 3600
        ends = {"value": images_per_s.value, "low": images_per_s.high, "high": images_per_s.low}
        costs = {k: 1000 * second / rate for k, rate in ends.items()}
        return {**costs, "currency": self.currency, "source": price.source, "date": price.date}

    def missing(self, device_class: str) -> str:
        """What to say of a class without a price."""
        kind = "per_core_hour" if device_class == "cpu" else "per_hour"
        return (
            f"no price for {device_class} in {self.where}. Add `{device_class}: {{{kind}: …, source: …, date: …}}` below "
            "`prices:`, or give another table with --prices."
        )


def load_prices(path: Path | str | None = None) -> Prices:
    """The price table of a file, by default the one that ships; UserError naming every problem of it."""
    file = resources.files("optimize.measure") / SHIPPED if path is None else Path(path)
    if path is not None and not os.path.exists(path):
        raise UserError(f"prices: no such file: {cut(str(path))}. Copy the shipped {SHIPPED} and edit it.")
    where = SHIPPED if path is None else str(path)
    text = file.read_text() if path is None else read_text(Path(path), LARGEST_YAML, UserError, "a price table")
    return _parsed(parse_yaml(text, f"prices: {where}"), where)


def _parsed(raw: Any, where: str) -> Prices:
    if not isinstance(raw, dict):
        raise UserError(f"prices: {where}: a mapping with currency and prices is expected; found {type(raw).__name__}.")
    given = raw.get("prices")
    problems = _unknown(given) if isinstance(given, dict) else []
    try:
        table = Prices.model_validate(raw | {"where": where})
    except ValidationError as error:
        problems += [_described(e) for e in error.errors()]
    if problems:
        more = [f"  and {len(problems) - NAMES} more"] if len(problems) > NAMES else []
        lines = [f"prices: {where}: {len(problems)} problem(s)", *(f"  {p}" for p in problems[:NAMES]), *more]
        raise UserError("\n".join(lines))
    return table


def _unknown(given: dict[str, Any]) -> list[str]:
    """Classes written in another way (A100, rtx-3090); other names may be GPUs of no listed class."""
    plain = {name: re.sub(r"[^a-z0-9]", "", str(name).lower()) for name in given}
    wrong = {cut(name): near for name, near in plain.items() if name not in targets() and near in targets()}
    return [f'prices.{name}: "{name}" is not known. Did you mean "{near}"?' for name, near in wrong.items()]


def _described(error: Any) -> str:
    place = cut(".".join(str(p) for p in error["loc"])) or "table"
    if error["type"] == "missing":
        return f"{place}: missing. A price has per_hour (or per_core_hour), source and date; the table has a currency."
    if error["type"] == "extra_forbidden":
        allowed = Price.model_fields if error["loc"][0] == "prices" else ("currency", "prices")
        return f"{place}: unknown key. Allowed: {', '.join(allowed)}.{did_you_mean(str(error['loc'][-1]), allowed)}"
    return f"{place}: given {shown(error['input'])}. {cut(error['msg'].removeprefix('Value error, '), 400)}."
