"""Closed-form repair: surviving weights are refitted to the outputs of the original.

It imports `runtime`, `graph`, `metrics` and `calibration`, and modules of the root.
"""
