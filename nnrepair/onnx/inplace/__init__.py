"""ONNX files of any operators, repaired where they are: cut before a layer, and written with other numbers in it."""
