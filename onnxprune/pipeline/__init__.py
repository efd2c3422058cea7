"""The public functions as lists of stages: each stage takes a `Run` and returns a changed copy.

It imports `runtime`, `data`, `graph`, `metrics`, `surgery`, `calibration`, `evaluation`, `torch_backend`, `repair`,
`importance`, `training`, `allocation` and `report`, and modules of the root.
"""
