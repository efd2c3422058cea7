"""Importance of channels and error of edits: `methods` is the table, `registry` calls it, one module per family of functions.

May import: calibration, surgery, graph, torch_backend (lazily) and everything above them.
"""
