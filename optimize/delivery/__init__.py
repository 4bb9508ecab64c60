"""What leaves for another machine outside a run: a model as an ONNX artifact, an artifact's engines and build kits.

Read `as_onnx.py` first, then `as_engines.py`. Not here: whole pipelines (`pipelines/`), and how engines are built.
"""
