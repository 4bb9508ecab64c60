"""What quantization is made of: 8-bit codes, eligible layers, calibration inputs, fake quantizers from a table.

Read `fake_quant.py` first: quantizers as data. The pass is `passes/quantize.py`; graphs get Q/DQ in `onnx/qdq.py`.
Not here: runners, and what a format costs on a device.
"""
