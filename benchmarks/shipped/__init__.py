"""Networks as others ship them: ONNX files of packages, and fresh exports, each repaired in place; and BERT."""
