"""The disk itself, whatever lies on it: its errors as one, one process a name, and names exchanged at one stroke.

Read `full.py` first: `writing`, inside which a disk that takes no more is one clear error. `locks.py` holds a name against
other processes, `swap.py` puts a folder in another's place and right again after a kill.
Not here: what a file means, or anything that imports torch when it is imported.
"""
