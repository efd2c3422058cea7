"""Which channels stay and which layers are edited, so that the targets are met at the least expected loss.

It imports `runtime`, `graph`, `metrics`, `surgery`, `calibration`, `evaluation`, `torch_backend`, `repair` and
`importance`, and modules of the root.
"""
