"""Read and normalize a model, trace its channels by one rule per operator (`operators`, `rules`), count its costs.

It imports `runtime`, `data`, and modules of the root.
"""
