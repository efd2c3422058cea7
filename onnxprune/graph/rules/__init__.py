"""Rules: the numpy operation of an operator, applied to channel ids.

A rule sees one node through a `RuleContext`, reports facts (ties, pins, slices, counts) to it, and returns one id array
per output. `onnxprune.graph.operators` lists the rule of each operator.
"""
