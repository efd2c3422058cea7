"""Calibration samples in batches, layer inputs captured layer by layer, their moments, and the memory for them.

It imports `runtime`, `data`, `graph`, `metrics` and `surgery`, and modules of the root.
"""
