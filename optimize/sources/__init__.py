"""Plugins: where models come from, a file each, named as it is registered.

Read `diffusers.py` first. Not here: architectures, and other plugins.
"""
