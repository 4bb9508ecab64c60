"""What judges images: distances between distributions, drift, accuracy, with intervals.

Read `evaluate.py` first; `metrics.py` names the figures, torch-free, since recipes hold them; `shards.py` shares work out
to processes. Not here: which variants are judged and what a gate asks (`runs/`).
"""
