"""Change a model and prove the change: channels, masks, edits, proof. It may import graph, metrics and what is below them."""
