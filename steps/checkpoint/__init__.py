"""A model's files: where they come from, whether they are whole, and whether they can be used.

manifest.py          the files of a checkpoint, with sizes and hashes, as one step hands them to the next
hub.py               the checkpoint or the prebuilt ONNX folder of a repository of the hub
hub_cache.py         the hub's cache: the files of one commit, each as the hub states it
hub_errors.py        what the hub refuses or fails to give, as one line
snapshot.py          the files of a manifest, made present again
checks.py            can this checkpoint become what was asked for? asked before its weights are fetched
tokenizer_check.py   the checks of tokenizer and chat template
weights_check.py     the checks of the safetensors headers
policy.py            the files, end tokens and sampling that both wrappers take from a checkpoint
"""
