"""Scores: one number for each channel, by the method that the options name.

May import calibration, surgery, metrics, graph and runtime; torch only through torch_backend, when gradients are asked for.
"""
