"""Samples: reading them, preprocessing, augmentation, and generated inputs.

May import: errors, types, progress, options, fileio, runtime. Owner of Pillow (with report/thumbnails).
"""
