"""The graph of a model: read and normalize it, follow its channels, and count what they cost.

One rule per operator lives in `rules`. Imports `errors`, `types`, `output` and `runtime`.
"""
