"""Training of a pruned model: distillation, constraints on weights, gates on channels, checkpoints.

It imports `runtime`, `data`, `graph`, `metrics` and `torch_backend`, and modules of the root.
"""
