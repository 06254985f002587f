"""The four readers of ONNX files against onnxruntime, on random graphs."""
