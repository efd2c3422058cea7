"""Importance of channels and error of edits: `methods` is the table, which options read as well; `registry` calls it.

It imports `runtime`, `graph`, `metrics`, `surgery`, `calibration` and `torch_backend`, and modules of the root.
"""
