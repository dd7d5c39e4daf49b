"""Code that travels inside logged models: it imports nothing of ours.

onnx_chat.py    the pyfunc model: requests in, Chat Completions or text out
onnx_engine.py  the process in which onnxruntime-genai generates
"""
