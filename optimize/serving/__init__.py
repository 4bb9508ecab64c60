"""What a server loads: Triton model repositories with the sampling loop inside, and a small server for a quick look.

Read `_loop.py` first: sampling on numpy, copied into the model with `diffusion/solvers.py` and `rng.py`. `_repository.py`
writes the repository, `triton.py` and `quick.py` are what the command line calls.
Not here: torch in anything that is copied.
"""
