"""Calibration samples in batches, layer inputs captured batch by batch, and their moments.

May import: data, graph, metrics, surgery and everything above them.
"""
