"""Layers of a model in a run's summary."""

from __future__ import annotations

import pytest

from optimize.diffusion.macs import count
from optimize.diffusion.model import Model
from optimize.inspect.breakdown import by_layer


def test_rows_add_up_to_the_model_and_to_its_time(tiny_model: Model) -> None:
    rows, whole = by_layer(tiny_model, batch=2, rounds=2), count(tiny_model)
    assert sum(r["params"] for r in rows) == whole["params"]
    assert sum(r["macs"] for r in rows) == 2 * whole["macs"]
    assert sum(r["share_time"] for r in rows) == pytest.approx(1.0, abs=0.3)  # containers keep a little of their own
    assert max(r["share_time"] for r in rows) < 1
    assert [r["share_time"] for r in rows] == sorted((r["share_time"] for r in rows), reverse=True)
    kinds = {r["path"]: r["kind"] for r in rows}
    assert (
        kinds["conv_in"] == "conv" and kinds["time_embedding.linear_1"] == "linear" and kinds["conv_norm_out"] == "norm"
    )
