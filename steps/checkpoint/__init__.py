"""A model's files: where they come from, whether they are whole, and how they become ONNX.

hub             the files of a repository at one commit, downloaded and checked
manifest        which files belong to a checkpoint, with their sizes and hashes
snapshot        the files of a manifest, present again for a later step
architectures   which architectures onnxruntime-genai can build
onnx_export     from a checkpoint to an ONNX folder, in a process of its own
"""
