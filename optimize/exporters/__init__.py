"""Plugins: exporters, a file each, named as it is registered: an artifact's files in another format.

Read `onnx.py` first. Not here: other plugins, and anything heavy at the top level of a file.
"""
