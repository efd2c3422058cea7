"""Judge a candidate against its original: structure, accuracy or fidelity, latency, and the limits of the gate.

It imports `runtime`, `data`, `graph`, `metrics` and `surgery`, and modules of the root.
"""
