"""Recipes: YAML into frozen configs, torch-free, and the recipes that ship with the package, one YAML file each.

Read `schema.py` first: every section and field; `read.py` reports everything wrong in a file at once.
Not here: what a recipe means on a machine (`planning/refusals.py`), and anything that imports torch.
"""
