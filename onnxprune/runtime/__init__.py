"""Sessions of onnxruntime, timing, and the machine; the only importer of onnxruntime. It imports the root modules."""
