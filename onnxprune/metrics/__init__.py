"""The metric table (`table`, which options read as well), differences of outputs, paired tests, activation memory.

It imports `graph`, and modules of the root.
"""
