"""Tool calls: what the chat template does with tools, and how calls are read from what the model writes.

    formats.py   how families of models write a call: one table
    template.py  which of them a chat template has, and how it is given tools, calls and results
    request.py   checks the fields tools, tool_choice and parallel_tool_calls, and the calls in messages
    reader.py    reads an answer piece by piece: text for the user, and whole calls

This file must hold no code: `onnx_chat.py` says why.
"""
