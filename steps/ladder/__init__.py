"""onnx=auto: recipes from small to large, each built and measured beside the checkpoint, until one keeps the gates.

climb.py              builds and measures the recipes in their order, and stops at the first that keeps the gates
rungs.py              one recipe, built and measured in a run of its own, which a later ladder finds again
beside_checkpoint.py  measures a build beside its checkpoint
"""
