"""Summaries as pages people read: Markdown, HTML, charts. A summary is plain JSON, so nothing here imports a run.

Read `figures.py` first: which rows to show and what was achieved. `terminal/` holds the tables of the command line.
Not here: computing a figure; every number comes from the summary.
"""
