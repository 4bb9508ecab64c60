"""Predicted time and memory of a network call on a device, from its layers and from measurements of other networks.

Read `rates.py` first: the roofline itself; then `layers.py`, a network operator by operator, and `predict.py`.
`published.py` holds GPUs' rates, `probe.py` measures this CPU's, `fitting.py` fits both.
Not here: measured latencies of artifacts (`measure/`), and what a plan makes of predictions (`planning/`).
"""
