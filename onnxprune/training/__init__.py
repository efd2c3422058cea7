"""Training of a pruned model: distillation, constraints on weights, gates on channels, and importances from gradients.

May import `torch_backend`, and what that may import. Loads torch: import its modules where they are used.
"""
