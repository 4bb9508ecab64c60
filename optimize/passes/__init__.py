"""Plugins: passes, a file each, named as it is registered. Each maps Model to Model and restores its edit from a record.

Read `recover.py` first, the shortest. What passes are made of is in `pruning/`, `quantization/`, `training/`.
Not here: other plugins, runners, and anything heavy at the top level of a file (recipes are read without torch).
"""
