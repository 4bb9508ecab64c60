"""A look at a model: which parts a folder holds, and parameters, MACs, bytes and time by layer.

Read `breakdown.py` first; `parts.py` finds what is in a folder. Not here: what to do about it (`planning/`).
"""
