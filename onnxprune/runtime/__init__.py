"""Sessions of onnxruntime, interleaved timing, profiles, the machine and worker processes; the only importer of onnxruntime.

It imports modules of the root.
"""
