"""The model: files, shapes, and the trace of its channels."""
