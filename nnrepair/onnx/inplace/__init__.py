"""Any ONNX file, repaired in place.

The file is cut before a layer: onnxruntime runs what comes before, torch the rest, and what changed is written into it.
"""
