"""The process in which an export's example answers: the example may end a process, and its memory is given back.

    python rehearse.py EXAMPLE < CONVERSATIONS

Prints one line of JSON: the example's answer to the question that ends the first conversation, and the token ids of
each conversation as the example makes them.
"""

import contextlib
import io
import json
import runpy
import sys

conversations = json.load(sys.stdin)
example, said = sys.argv[1], io.StringIO()
sys.argv[1:] = [conversations[0][-1]["content"]]
with contextlib.redirect_stdout(said):
    made = runpy.run_path(example, run_name="__main__")


def ids_of(conversation: list[dict[str, str]]) -> list[int]:
    """Return *conversation* as the example reads its question."""
    chat = made["og"].Tokenizer(made["model"])
    text = chat.apply_chat_template(json.dumps(conversation), add_generation_prompt=True)
    return list(made["tokenizer"].encode(text, add_special_tokens=False).ids)


prompts = [list(made["prompt"]), *map(ids_of, conversations[1:])]
print(json.dumps({"answer": said.getvalue().removesuffix("\n"), "prompts": prompts}))
