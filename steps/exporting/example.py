"""Answers a question with the model beside this file: python example.py "What is the capital of Spain?"."""

import json
import sys
from pathlib import Path

import onnxruntime_genai as og
from tokenizers import Tokenizer

folder = Path(__file__).parent / "model"
settings = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
ends = settings["eos_token_id"] if isinstance(settings["eos_token_id"], list) else [settings["eos_token_id"]]
model, tokenizer = og.Model(str(folder)), Tokenizer.from_file(str(folder / "tokenizer.json"))

messages = [{"role": "user", "content": sys.argv[1]}]
text = og.Tokenizer(model).apply_chat_template(json.dumps(messages), add_generation_prompt=True)
prompt = tokenizer.encode(text, add_special_tokens=False).ids

params = og.GeneratorParams(model)
longest = min(len(prompt) + 256, settings["context_length"])  # prompt and answer, in tokens
params.set_search_options(max_length=longest, do_sample=False, num_beams=1, repetition_penalty=1.0)
generator = og.Generator(model, params)
generator.append_tokens(prompt)

tokens, shown = [], ""
while not generator.is_done():  # until an end token or `longest`
    generator.generate_next_token()
    tokens += [int(token) for token in generator.get_next_tokens() if token not in ends]
    text = tokenizer.decode(tokens)
    if generator.is_done() or not text.endswith("\ufffd"):  # half a character waits for its rest
        print(text[len(shown) :], end="", flush=True)
        shown = text
print()
