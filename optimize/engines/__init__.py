"""Engines: ONNX files compiled by TensorRT or TensorRT-RTX, on a machine with the GPU or ahead of time without one.

Read `make.py` first: an order becomes an engine and its record. `builder`, `cuda`, `session`, `plan_text` and `script`
need numpy and the TensorRT module they are given as a value, since a build kit's one script is made of their sources
(see `kits/compose.py`); `libraries.py` finds that module. `opened.py` is an engine as a Network.
Not here: how an engine is asked for (`exporters/`, `delivery/`).
"""
