"""Before any work: what cannot work is refused, what today's model will take is predicted, a recipe fits a budget.

Read `refusals.py` first, the check of every run; `outlook.py` is all of `optimize plan`, over `subject.py` (what the plan
is about), `offers.py` (what this version can make), `forecast.py` and `propose.py`.
Not here: anything measured by the plan itself, but for a CPU's rates.
"""
