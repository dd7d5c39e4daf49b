"""The ONNX wrapper, which travels inside the logged model: a language model that answers Chat Completions.

A request passes these files in this order:

    model.py          what MLflow calls: rows in, answers or chunks out
    signatures.py     the signatures of interface=chat and interface=prompt
    fields.py         checks the fields of a row: which are taken, and how a mistake is answered
    request.py        reads a row as a Request
    messages.py       checks the messages of a chat
    tools/            tool calls: what the template does with tools, and how calls are read from answers
    tokenizer.py      chat tokenizer: messages to token ids, as transformers does it
    chat_template.py  compiles the checkpoint's chat template
    output.py         request output: token ids in, text out, until a stop string, an end token or the limit
    detokenizer.py    token ids to text, one at a time
    logprobs.py       OpenAI's objects for log probabilities
    engine_client.py  starts the engine, sends requests to it, receives tokens from it
    engine/           the engine, a program of its own

    cpus.py           how many CPUs a process may use

It imports nothing of this project outside itself, neither torch nor transformers, and importing it registers nothing.
This file must hold no code: `onnx_chat.py` says why.
"""
