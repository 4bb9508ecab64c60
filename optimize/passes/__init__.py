"""Passes: one file each, named as registered. Each maps Model to Model; none imports another."""
