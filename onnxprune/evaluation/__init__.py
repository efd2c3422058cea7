"""Judge a candidate against its original: structure, accuracy or fidelity, latency, and the limits of the gate.

Imports surgery, metrics, graph, data, runtime and the root.
"""
