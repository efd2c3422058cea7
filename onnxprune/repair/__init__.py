"""Closed-form repair: surviving weights are refitted to the outputs of the original.

It imports `runtime`, `graph`, `metrics`, `surgery` and `calibration`, and modules of the root.
"""
