"""A model's files: where they come from, whether they are whole, and how they become ONNX.

hub.py               the files of a repository at one commit, downloaded and checked
manifest.py          which files belong to a checkpoint, with their sizes and hashes
snapshot.py          the files of a manifest, present again for a later step
architectures.py     which architectures onnxruntime-genai can build
onnx_export.py       from a checkpoint to an ONNX folder, in a process of its own
hub_errors.py        what an error of the hub means, and what to do
onnx_recipes.py      which quantisations a checkpoint allows
shared_embedding.py  an ONNX model whose head and embedding are one table
"""
