"""Code that travels inside logged models: it imports nothing of ours.

onnx_chat.py  the file that MLflow loads: it imports the package that lies beside it in the logged model
onnx/         the package: requests, tokenizer, engine client, scheduler, sampling; its own map is in its __init__.py
"""
