"""Files on disk, and nothing of what is in them: weights, whole-or-nothing folders, trust, the store of stages.

Read `commit.py` first: the only way anything lands on disk, on `locks.py`, `swap.py`, `ours.py`, `ledger.py`, `disk.py`.
`trust.py` compares files with a manifest, `cache.py` keeps stages by content and `garbage.py` removes them, `weights.py`
reads safetensors and JSON, `import_paths.py` finds objects the user named.
Not here: networks, or anything that imports torch when it is imported.
"""
