"""onnx=auto: builds recipes from small to large, measures each against the checkpoint, stops at the first that passes.

climb.py              builds and judges the recipes in order
rungs.py              the run of one recipe, which a later ladder finds again
beside_checkpoint.py  measures a build against its checkpoint
"""
