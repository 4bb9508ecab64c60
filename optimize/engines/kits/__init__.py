"""Build kits: folders for the machine with the card that builds what cannot be built here, and their way back.

Read `compose.py` first: what is in a kit; then `read.py` and `adopt.py`, its engine taken into the artifact.
Not here: the script that runs there, `engines/script.py`.
"""
