"""diffusers' scheduler_config.json: which classes are read, what their fields may be, the grid that they lay.

Read `classes.py` first. Not here: what is done with it (`diffusion/followed.py` and its neighbours).
"""
