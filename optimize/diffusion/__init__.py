"""Diffusion itself, for any network: schedule, parameterization, denoiser, solvers, sampling, the Model that passes map.

Read `model.py` first, then `network.py`: named tensors in, one raw tensor out. `backend.py` is what a runner is and how
one is opened, `context.py` what a pass is given. `solvers.py` imports nothing of this package: servers get a copy of it.
Not here: classes of diffusers, files, and what changes a network.
"""
