"""The metric table (`table`, which options read as well), differences of outputs, paired tests, decoders of detectors and their mAP,
activation memory.

It imports `graph`, and modules of the root.
"""
