"""Tables of the command line, a file a command; each takes plain values and fits 80 columns.

Read `summary.py` first: the closing table of a run. Not here: computing a figure, and options.
"""
