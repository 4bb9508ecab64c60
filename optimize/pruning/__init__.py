"""What pruning is made of: channels that go together, whole blocks, importance, and the reshaping of a network.

Read `dependency.py` first: which channels must go together. The pass is `passes/prune.py`.
Not here: recipes, budgets and runners.
"""
