"""Which channels stay and which layers are edited, so that the targets are met at the least expected loss.

May import: importance, repair, calibration, surgery, metrics, runtime and everything above them.
"""
