"""Samples and labels: reading, preprocessing, augmentation and generated inputs; the owner of Pillow, with `report.thumbnails`.

It imports `runtime`, and modules of the root.
"""
