"""Devices, as facts: classes of GPUs and CPUs, what is found on this machine, its memory, what a format can do there.

Read `targets.py` first: the table of device classes. `feasibility.py` holds the rules that plans and runs refuse by.
Not here: measurements, and anything that knows a network.
"""
