"""Labels in files: one module per family of formats, `reading` chooses, and `values` holds what they become.

Coordinates and masks are moved into pixels of the model's input, by the geometry of each image.
"""
