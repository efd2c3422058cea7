"""Changes to a graph: channels deleted, masks, layer edits, and the proof that a change is exact.

May import: graph, runtime, metrics and everything above them.
"""
