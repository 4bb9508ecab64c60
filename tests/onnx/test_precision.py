"""16-bit graphs: what must not be 16 bit stays float32, is named, and the graph then computes what the network does.

Graphs run with every operator's result rounded to 16 bits (see `onnx/emulation.py`), so an overflow is infinite here too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from pydantic import ValidationError
from torch import Tensor, nn

from optimize.configs import digest
from optimize.diffusion.backend import open_runner
from optimize.diffusion.network import TensorSpec
from optimize.errors import UserError
from optimize.exporters.onnx import FILE, Onnx
from optimize.onnx.precision import lower, takes
from optimize.onnx.trace import Tracing, traced

FLAT = (TensorSpec("x", ("B", 8)), TensorSpec("timestep", ("B",)))
IMAGE = (TensorSpec("x", ("B", 4, "H", "W"), sizes=(("H", 8), ("W", 8))), TensorSpec("timestep", ("B",)))


class Blown(nn.Module):
    """Goes up to about 1e6 and back between two calm layers; adds a sine of the time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.up, self.down, self.last = (nn.Linear(8, 8) for _ in range(4))
        with torch.no_grad():
            self.up.weight.mul_(1e6)
            self.down.weight.mul_(1e-6)
        self.frequencies = nn.Buffer(torch.logspace(0, -2, 8))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        h = self.down(self.up(self.first(x)))
        return self.last(h + torch.sin(timestep[:, None] * self.frequencies))


class Small(nn.Module):
    """A convolution, a group norm and GELU by tanh, the parts of U-Nets and transformers that 16 bit is hard on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.out = nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.out(self.act(self.norm(self.conv(x)) + timestep[:, None, None, None] / 1000))


class Rms(nn.Module):
    """A root-mean-square norm written out, of numbers whose squares FP16 does not hold."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        big = x * 600
        return big * torch.rsqrt(big.pow(2).mean(-1, keepdim=True) + 1e-6) + timestep[:, None]


def inputs(specs: tuple[TensorSpec, ...]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    shape = specs[0].shape(4)
    return {"x": torch.randn(shape), "timestep": torch.tensor([999.0, 501.0, 2.0, 0.0])}


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where graphs without weights are kept, so that a network is traced once for all tests."""
    KEPT.append(tmp_path_factory.mktemp("kept"))
    return KEPT[-1]


KEPT: list[Path] = []


def keep(name: str, depends: dict[str, Any], write: Callable[[Path], None]) -> Path:
    folder = KEPT[-1] / digest({"name": name, **depends})
    if not folder.exists():
        folder.mkdir()
        write(folder)
    return folder


def exported(module: nn.Module, specs: tuple[TensorSpec, ...], folder: Path, **options: Any) -> dict[str, Any]:
    about: dict[str, Any] = {"structure": type(module).__name__, "keep": keep, "feeds": lambda: [inputs(specs)]}
    return Onnx(**options).export_network(module.eval(), specs, folder, **about)


def error(module: nn.Module, specs: tuple[TensorSpec, ...], folder: Path) -> float:
    """Relative L2 between the exported graph, rounded after every operator, and torch."""
    feed = inputs(specs)
    with open_runner(folder, "onnxruntime") as network, torch.no_grad():
        a, b = module(**feed).double(), network(**feed).double()
    return float((b - a).norm() / a.norm())


def test_a_layer_that_overflows_fp16_stays_fp32_is_named_and_the_graph_stays_right(tmp_path: Path) -> None:
    module = Blown()
    record = exported(module, FLAT, tmp_path, precision="fp16")
    assert set(record["fp32_layers"]["overflow"]) == {"up", "down"}
    assert 65504 < record["fp32_layers"]["overflow"]["up"] < 1e8
    assert error(module, FLAT, tmp_path) < 2e-3


def test_without_its_islands_the_same_graph_is_not_finite(tmp_path: Path) -> None:
    module = Blown().eval()
    made = traced(module, FLAT, Tracing(20), {})
    lower(made.graph, "fp16", {})
    made.graph.metadata_props["optimize.computes_in"] = "fp16"
    (tmp_path / "onnx").mkdir()
    ir.save(made.graph, tmp_path / FILE)
    assert not error(module, FLAT, tmp_path) < 1.0


def test_bf16_has_the_range_and_needs_no_islands(tmp_path: Path) -> None:
    module = Blown()
    record = exported(module, FLAT, tmp_path, precision="bf16")
    assert "overflow" not in record["fp32_layers"] and record["opset"] == 22
    assert error(module, FLAT, tmp_path) < 3e-2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_argument_of_a_sine_stays_fp32(tmp_path: Path, precision: str) -> None:
    record = exported(Blown(), FLAT, tmp_path, precision=precision)
    assert record["fp32_layers"]["sine"] == ["(network)"]


@pytest.mark.parametrize(("precision", "limit"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_a_small_network_is_as_near_as_its_format_allows(tmp_path: Path, precision: str, limit: float) -> None:
    module = Small()
    exported(module, IMAGE, tmp_path, precision=precision)
    assert 1e-5 < error(module, IMAGE, tmp_path) < limit


def test_weights_are_16_bit_and_inputs_and_outputs_are_not(tmp_path: Path) -> None:
    exported(Small(), IMAGE, tmp_path, precision="fp16")
    graph = onnx.load(tmp_path / FILE).graph
    kinds = {t.name: t.data_type for t in graph.initializer if t.name.endswith("weight") or "weight." in t.name}
    assert set(kinds.values()) == {TensorProto.FLOAT16}
    outside = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
    assert set(outside) == {TensorProto.FLOAT}
    assert [v.name for v in graph.output] == ["out_sample"]


def test_inputs_and_outputs_are_16_bit_where_asked_but_the_time_before_a_sine(tmp_path: Path) -> None:
    exported(Blown(), FLAT, tmp_path, precision="fp16", outside="same")
    graph = onnx.load(tmp_path / FILE).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert kinds == {"x": TensorProto.FLOAT16, "timestep": TensorProto.FLOAT, "out_sample": TensorProto.FLOAT16}


def test_a_norm_written_out_stays_whole_in_fp32(tmp_path: Path) -> None:
    module = Rms()
    record = exported(module, FLAT, tmp_path, precision="fp16")
    assert "overflow" in record["fp32_layers"] or "sums" in record["fp32_layers"]
    assert error(module, FLAT, tmp_path) < 2e-3


def test_layers_the_user_names_stay_fp32(tmp_path: Path) -> None:
    record = exported(Small(), IMAGE, tmp_path, precision="fp16", fp32_layers=("out",))
    assert record["fp32_layers"]["asked"] == ["out"]
    with pytest.raises(UserError, match=r'fp32_layers: "ot" is not known\. Allowed: .*Did you mean "out"'):
        exported(Small(), IMAGE, tmp_path, precision="fp16", fp32_layers=("ot",))


def test_operators_without_a_16_bit_form_in_the_operator_set_stay_fp32(tmp_path: Path) -> None:
    assert not takes("Conv", 20, 0, "bf16") and takes("Conv", 22, 0, "bf16") and takes("Conv", 18, 0, "fp16")
    record = exported(Small(), IMAGE, tmp_path, precision="bf16", opset=18)
    assert {"conv", "out"} <= set(record["fp32_layers"]["operator"])


def test_equal_networks_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        exported(Small(), IMAGE, tmp_path / name, precision="fp16")
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_an_unknown_operator_set_is_refused_with_those_allowed() -> None:
    with pytest.raises(ValidationError, match="Allowed: 18 to 23, or none for the lowest that holds the precision"):
        Onnx(opset=17)
    assert [Onnx(precision=p).resolved_opset([]) for p in ("fp32", "fp16", "bf16")] == [18, 20, 22]


def test_one_cast_serves_all_that_read_a_value(tmp_path: Path) -> None:
    exported(Small(), IMAGE, tmp_path, precision="fp16")
    casts = [(n.input[0], n.attribute[0].i) for n in onnx.load(tmp_path / FILE).graph.node if n.op_type == "Cast"]
    assert len(casts) == len(set(casts))
