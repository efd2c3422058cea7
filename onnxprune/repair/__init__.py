"""Refit the weights that are left by least squares, and keep them only where held-out samples say that they are better.

May import calibration, surgery, metrics, graph and runtime.
"""
