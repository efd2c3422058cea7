"""Closed-form repair: surviving weights are refitted to the outputs of the original.

May import: calibration, surgery, graph and everything above them.
"""
