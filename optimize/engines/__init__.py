"""Engines: ONNX files compiled by TensorRT or TensorRT-RTX, on a machine with the GPU or ahead of time without one.

`builder`, `cuda`, `session` and `script` need nothing but numpy and the TensorRT module they are given as a value:
a build kit's one script is made of their sources (see `kit`). Everything else plans, keys, checks and stores.
"""
