"""Plugins: runners, a file around one backend each, named as it is registered. Each is a Network and a `with` block.

Read `openvino.py` first; the protocol is `diffusion/backend.py`. A name that begins with `_` is no plugin, and shared.
Not here: other plugins, and anything heavy at the top level of a file.
"""
