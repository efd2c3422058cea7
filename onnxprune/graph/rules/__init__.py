"""Rules: the numpy operation that an operator does, done on channel ids.

A rule sees one node through a `RuleContext` and returns one id array per output. What it finds on the way (ties, pins, slices,
counts) it tells the context. `onnxprune.graph.operators` lists which operator has which rule.
"""
