"""Measurement: timing, memory, statistics."""
