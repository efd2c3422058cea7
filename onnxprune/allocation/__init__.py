"""Choose which channels stay and which layers are edited, so that the targets hold at the least expected loss.

May import importance, repair, calibration, surgery, metrics, graph and runtime; not the pipeline, reports or torch.
"""
