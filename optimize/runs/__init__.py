"""One run: a recipe carried out, stage by stage, each found again by content.

Read `execute.py` first: the whole way of a run on one page. `stages.py` holds what each step depends on and does,
`fair.py`, `suite.py`, `gates.py` and `summary.py` the fair search, what is timed, what must hold, and what is told.
Not here: how a pass, an exporter or a runner works.
"""
