"""The ONNX wrapper, which travels inside the logged model: a language model that answers Chat Completions.

A request passes these files in this order. The first seven run in the server's process, the rest in the engine's:

    model.py          what MLflow calls: rows in, answers or chunks out
    signatures.py     the signatures of interface=chat and interface=prompt
    request.py        checks a row: which fields are taken, and what a wrong one is answered
    tokenizer.py      chat tokenizer: messages to token ids, as transformers does it
    chat_template.py  compiles the checkpoint's chat template
    output.py         request output: token ids in, text out, until a stop string, an end token or the limit
    detokenizer.py    token ids to text, one at a time
    engine_client.py  starts the engine, sends requests to it, receives tokens from it

    __main__.py       the engine: a process of its own, messages in and out
    scheduler.py      which sequences share a batch, and which batch takes the next step
    sequence.py       a prompt that is being continued; a batch of them
    prefix_cache.py   KV caches of finished sequences, for prompts that begin alike
    og_model.py       the model's folder, loaded by onnxruntime-genai ("og")
    stats.py          what the scheduler is doing, in numbers
    sampling.py       temperature, top_k and top_p

    cpus.py           how many CPUs a process may use

It imports nothing of this project outside itself, neither torch nor transformers, and importing it registers nothing.
The engine imports neither MLflow nor pandas, so this file has to stay empty.
"""
