"""The checkpoint: what it is, and what ONNX is made of it."""
