"""Sessions of onnxruntime, interleaved timing, profiles, the machine and worker processes; the only importer of onnxruntime.

It imports modules of the root. Importing it switches onnxruntime's telemetry off, in this process and in those that it starts, unless
the environment says otherwise: onnxruntime reads the variable when it is imported, and stores a device id there and then.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
