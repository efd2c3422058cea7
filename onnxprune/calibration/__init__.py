"""Calibration samples in batches, layer inputs captured layer by layer, their moments, and the memory for them.

It imports `runtime`, `data` and `graph`, and modules of the root.
"""
