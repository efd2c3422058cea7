"""The metric table (`table`, which options read as well), differences of outputs, paired tests, metrics of tasks, decoders of
detectors, activation memory.

It imports `data` and `graph`, and modules of the root.
"""
