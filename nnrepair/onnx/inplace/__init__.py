"""ONNX files, repaired in place.

Files of any operators are cut before a layer: onnxruntime runs what comes before, torch the rest, and what changed is
written into the file.
"""
