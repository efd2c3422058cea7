"""The metric table (`table`, which options read as well), differences of outputs, paired tests, metrics of tasks,
functions of the user, activation memory.

It imports `graph`, and modules of the root.
"""
