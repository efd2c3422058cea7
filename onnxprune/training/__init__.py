"""Training of a pruned model: distillation, constraints on weights, and gates on channels.

May import `torch_backend`, and what that may import. Loads torch: import its modules where they are used.
"""
