"""The matrix of ONNX exports: cells are compared with torch, a wrong one fails, and the exit code says so."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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
    arguments(
        monkeypatch, "--networks", "pixart", "--precisions", "fp32", "--exporters", "torchscript", "--json", str(out)
    )
    assert matrix.main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["status"] == "done" and row["record"]["symbols"] == ["B", "H", "L", "W"]
    compared = row["parity"]["compared"]
    assert {(c["level"], c["batch"], c["sizes"]["H"]) for c in compared} == {
        (level, batch, size) for level in matrix.LEVELS for batch in matrix.BATCHES for size in (16, 24)
    }
    assert all(c["relative_l2"] <= row["limit"] for c in compared)
    assert "1 cells, 0 failed" in capsys.readouterr().out


def test_a_cell_that_is_off_fails_the_program(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matrix.LIMITS, "fp32", 1e-12)
    arguments(monkeypatch, "--networks", "pixart", "--precisions", "fp32", "--exporters", "torchscript")
    assert matrix.main() == 1


def test_a_quantized_cell_may_be_off_by_what_its_network_makes_of_float_rounding(matrix: Any) -> None:
    def limit(precision: str, own: float, network: str = "sd") -> float:
        return matrix.limit_of(matrix.Cell(network, precision, "dynamo", None), {"own": own})

    assert limit("fp8", 0.2) == pytest.approx(0.3) and limit("fp8", 1e-6) == matrix.LIMITS["fp8"]
    assert limit("fp32", 0.2) == matrix.LIMITS["fp32"]
    assert limit("fp32", 0.2, "unet2d quantized") == matrix.LIMITS["int8"]


def test_artifacts_of_a_run_are_cells_of_every_precision_and_exporter(matrix: Any) -> None:
    args = Namespace(networks=[], artifacts=Path("run"), exporters=matrix.EXPORTERS, precisions=matrix.PRECISIONS, opset=22)  # fmt: skip
    found = {(c.network, c.precision, c.exporter) for c in matrix.cells(args)}
    assert len(found) == 2 * (5 + 5 + 3)  # the quantized one is not quantized again
    assert {n for n, _, _ in found} == {"unet2d pruned", "unet2d distilled", "unet2d quantized"}
    assert len(list(matrix.cells(Namespace(**{**vars(args), "networks": None, "artifacts": None})))) == 100


def test_a_record_keeps_the_figures_without_every_comparison(matrix: Any, tmp_path: Path) -> None:
    from recorded import append

    parity = {"relative_l2": 1e-6, "compared": [{}, {}]}
    row = {"network": "net", "parity": parity, "record": {"bytes": 5, "file": "onnx/model.onnx"}}
    for _ in range(2):
        path = append("matrix", "onnx_matrix.py", [matrix.lean(row)], tmp_path)
    first, second = json.loads(path.read_text())
    assert first["rows"] == second["rows"] == [
        {"network": "net", "parity": {"relative_l2": 1e-6, "comparisons": 2}, "record": {"bytes": 5}}
    ]  # fmt: skip
    assert first["command"] == "onnx_matrix.py" and first["environment"]["libraries"] and len(first["date"]) == 10


def test_an_error_fails_its_cell_and_names_itself(matrix: Any, tmp_path: Path) -> None:
    def load() -> Any:
        raise RuntimeError("no such thing\nand more")

    row = matrix.run(matrix.Cell("x", "fp32", "dynamo", load), tmp_path, None)
    assert row["status"] == "failed" and row["reason"] == "no such thing"


def test_the_table_is_aligned(matrix: Any) -> None:
    row = {"network": "net", "precision": "fp32", "exporter": "auto", "status": "failed", "reason": "why"}
    first, second = matrix.table([row]).splitlines()
    assert first.index("reason") == second.index("why")
