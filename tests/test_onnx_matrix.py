"""The matrix of ONNX exports: cells are compared with torch, a wrong one fails, and the exit code says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import onnx_matrix

    return onnx_matrix


def arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["onnx_matrix.py", *words])


def test_a_cell_is_exported_and_compared_over_levels_sizes_and_batches(
    matrix: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.json"
    arguments(monkeypatch, "--networks", "unet1d", "--precisions", "fp32", "--exporters", "dynamo", "--json", str(out))
    assert matrix.main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["status"] == "done" and row["record"]["symbols"] == ["B", "L"]
    compared = row["parity"]["compared"]
    assert {(c["level"], c["batch"], c["sizes"]["L"]) for c in compared} == {
        (level, batch, size) for level in matrix.LEVELS for batch in matrix.BATCHES for size in (64, 96)
    }
    assert all(c["relative_l2"] <= row["limit"] for c in compared)
    assert "1 cells, 0 failed, 0 refused" in capsys.readouterr().out


def test_a_cell_that_is_off_fails_the_program(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matrix.LIMITS, "fp32", 1e-12)
    arguments(monkeypatch, "--networks", "unet1d", "--precisions", "fp32", "--exporters", "dynamo")
    assert matrix.main() == 1


def test_an_error_fails_its_cell_and_names_itself(matrix: Any, tmp_path: Path) -> None:
    def load() -> Any:
        raise RuntimeError("no such thing\nand more")

    row = matrix.run(matrix.Cell("x", "fp32", "dynamo", load), tmp_path, None)
    assert row["status"] == "failed" and row["reason"] == "no such thing"


def test_the_table_is_aligned(matrix: Any) -> None:
    row = {"network": "net", "precision": "fp32", "exporter": "auto", "status": "failed", "reason": "why"}
    first, second = matrix.table([row]).splitlines()
    assert first.index("reason") == second.index("why")
