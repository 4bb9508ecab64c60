#!/usr/bin/env bash
# OpenVINO's CPU plugin runs a graph with 16-bit Q/DQ pairs as if they were not there: nothing is rounded or clipped
# Versions: openvino 2026.4.1, onnx 1.23.2, numpy 2.4.6, Python 3.11, x86-64 Linux. Inference precision set to f32.
# Situation: activations quantized to UINT16 or INT16 (QuantizeLinear -> DequantizeLinear of opset 21) before a MatMul,
#   with a calibrated range of +-3.28 and a few outliers beyond it. The same graph with UINT8 as a control.
# Expectation: the ONNX specification of QuantizeLinear: saturate(round(x / scale) + zero_point), for 16 bit saturated
#   to [0, 65535] or [-32768, 32767], so that an input of 50 comes out of the pair as 3.28.
# Seen: with 16 bit the result equals the product of the unquantized activations to 0.00001 and is up to 27.9 away from
#   the specification's; with a coarse scale of 0.5 (rounding, no clipping) 0.35 away. The UINT8 control follows the
#   specification to 0.00001. It looks like an optimisation that takes 16 bit for lossless; nothing is logged.
# Why it matters: whoever measures a W8A16 or A16 diffusion model this way measures the unquantized activations. The
#   error of a bad range or a coarse scale does not show, and does show on the device that executes the pair.
# Instead: judge 16-bit Q/DQ graphs with onnxruntime or an explicit Clip and Round in the float graph; on OpenVINO, put
#   a Clip with the quantizer's range before each pair whose clipping is meant.
set -euo pipefail

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1
python3 -m venv "$dir/venv" || exit 2
"$dir/venv/bin/pip" install -qq --no-compile openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6 || exit 2
"$dir/venv/bin/python" -W ignore -c 'import numpy, onnx, openvino' || exit 2

cat > "$dir/check.py" <<'PY'
import sys
import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
x = rng.normal(size=(16, 64)).astype(np.float32)
x[:, ::16] = 50 * np.sign(x[:, ::16])
weight = (rng.normal(size=(64, 8)) / 8).astype(np.float32)


def graph(kind, scale, zero):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = [
        numpy_helper.from_array(np.float32(scale), "scale"),
        numpy_helper.from_array(np.array(zero, dtype), "zero"),
        numpy_helper.from_array(weight, "weight"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("MatMul", ["d", "weight"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16, 8])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def error(got, wanted):
    return float(np.abs(got - wanted).max())


core = ov.Core()
unquantized = x.astype(np.float64) @ weight
same = True
for name, kind, scale, zero, low, high in (
    ("UINT16, fine", TensorProto.UINT16, 1e-4, 32768, 0, 65535),
    ("INT16, fine", TensorProto.INT16, 1e-4, 0, -32768, 32767),
    ("INT16, coarse", TensorProto.INT16, 0.5, 0, -32768, 32767),
    ("UINT8", TensorProto.UINT8, 0.025, 128, 0, 255),
):
    model = core.read_model(graph(kind, scale, zero).SerializeToString())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = compiled({"x": x})[0]
    step = np.float64(np.float32(scale))
    wanted = ((np.clip(np.rint(x / step) + zero, low, high) - zero) * step) @ weight
    by_spec, by_float = error(got, wanted), error(got, unquantized)
    print(f"{name:14} largest deviation from the specification {by_spec:9.5f}, from the unquantized product {by_float:9.5f}")
    if kind == TensorProto.UINT8:
        same &= by_spec < 1e-2 < by_float
    else:
        same &= by_float < 1e-3 and by_spec > 0.1
sys.exit(0 if same else 1)
PY
cd "$dir"
venv/bin/python -W ignore check.py
