"""From a network to an ONNX file, and an ONNX file before anything parses it.

Read `trace.py` first; then, in the order of an export: `symbols`, `clean`, `qdq`, `precision`, `file`. `check.py` and
`rules.py` look at files that nobody vouches for, `vetted.py` opens an artifact's own; `lowering.py` and `emulation.py`
fit a graph to a runtime.
Not here: sessions of a runtime (`runners/`), and engines.
"""
