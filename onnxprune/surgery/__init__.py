"""Changes to a graph: deleted channels, masks, edits of layers, and the proof that a change is exact.

It imports `runtime`, `graph` and `metrics`, and modules of the root.
"""
