"""Measured time, memory, energy and cost: variants take turns in processes of their own, raw samples are kept.

Read `turns.py` first, then `worker.py`, its other side; `record.py` is a Measurement, `statistics.py` and `paired.py`
what is said of it, `wording.py` how figures are written.
Not here: predictions (`roofline/`), and which variants a run times (`runs/suite.py`).
"""
