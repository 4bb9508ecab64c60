"""Networks that judge, rebuilt from safetensors: Inception, LPIPS, a classifier; and how images are prepared for them.

Read `preprocess.py` first: resizing is where tools disagree. Not here: what is computed of their features.
"""
