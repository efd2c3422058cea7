"""Importance of channels and expected error of edits: one module per family of methods.

May import: calibration, surgery, graph, torch_backend (lazily) and everything above them.
"""
