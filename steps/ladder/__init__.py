"""onnx=auto: recipes from small to large, each built and measured beside the checkpoint, until one keeps the gates.

`climb` decides, `rungs` keeps what was measured, `beside_checkpoint` measures.
"""
