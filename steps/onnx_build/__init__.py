"""From a checkpoint to a folder that onnxruntime-genai runs.

export.py            the build: the builder, and what makes its result smaller
builder.py           onnxruntime-genai's builder, as a command that holds one matrix in fp32 at a time
source.py            what the builder reads: the checkpoint, with settings from which it exports right
shared_embedding.py  an embedding that is read from the 8 bits of the head
scales.py            the scales of quantised weights in 16 bits
external_data.py     the data file of an ONNX model, read and written a piece at a time
"""
