"""Whole diffusers pipelines to ONNX, in the layout that optimum's pipelines load.

Read `whole.py` first; `folder.py` opens a pipeline, `layout.py` is the layout's graphs, `in_place.py` puts an artifact in
the denoiser's place. Not here: networks alone (`delivery/as_onnx.py`).
"""
