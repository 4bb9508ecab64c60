"""The command line. Heavy imports happen inside commands, so that help is there at once.

Read `app.py` first: every command, exit codes, errors; `look.py` holds those that measure and plan, `hand_over.py` the
export. Not here: anything a script would want, which belongs to a room below and to `optimize/__init__.py`.
"""
