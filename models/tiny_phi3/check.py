"""Ask a checkpoint the evaluation task, through transformers' own chat template and generate.

    python -m models.tiny_phi3.check [FOLDER] [--task FILE]

Prints the accuracy in all and by kind of prompt; exits with 1 when it is below 0.95.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.tiny_phi3.chat_tokenizer import END
from models.tiny_phi3.conversations import Example

HERE = Path(__file__).resolve().parent
TASK = HERE.parent.parent / "data" / "capitals.jsonl"
REQUIRED_ACCURACY = 0.95


@dataclass(frozen=True)
class Answered:
    """An example, the length of its prompt in tokens, and the greedy answer to it."""

    example: Example
    prompt_tokens: int
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer equals the reference to the letter."""
        return self.answer == self.example["reference"]


@torch.inference_mode()
def ask(folder: Path, examples: Sequence[Example]) -> list[Answered]:
    """Return the greedy answers of the checkpoint in *folder*, loaded as a user would.

    An answer that does not stop with <|end|> says so in its text, and is therefore wrong.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(END)
    answered = []
    for example in examples:
        text = tokenizer.apply_chat_template(example["messages"], add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(str(text), add_special_tokens=False, return_tensors="pt")
        length = len(prompt["input_ids"][0])
        output = model.generate(**prompt)[0, length:].tolist()  # type: ignore[misc]
        said = str(tokenizer.decode(output, skip_special_tokens=True))
        answered.append(Answered(example, length, said if output[-1] == end else f"{said} [no {END}]"))
    return answered


def accuracy_by_kind(answered: Sequence[Answered], window: int) -> dict[str, tuple[int, int]]:
    """Return (right, asked) for all of *answered* and for the kinds of prompt among them."""

    def roles(one: Answered) -> list[str]:
        return [message["role"] for message in one.example["messages"]]

    kinds = {
        "all": list(answered),
        "with a system message": [one for one in answered if "system" in roles(one)],
        "after earlier turns": [one for one in answered if "assistant" in roles(one)],
        f"longer than the window of {window} tokens": [one for one in answered if one.prompt_tokens > window],
    }
    return {kind: (sum(one.right for one in ones), len(ones)) for kind, ones in kinds.items()}


def read_task(path: Path) -> list[Example]:
    """Return the examples of the JSON Lines file at *path*."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    """Ask, print the figures; return 1 if too few answers were right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE, help="the checkpoint (default: %(default)s)")
    parser.add_argument("--task", type=Path, default=TASK, help="the questions (default: %(default)s)")
    args = parser.parse_args()
    window = json.loads((args.folder / "config.json").read_text(encoding="utf-8"))["sliding_window"]
    answered = ask(args.folder, read_task(args.task))
    figures = accuracy_by_kind(answered, window)
    for one in answered:
        if not one.right:
            print(f"wrong: {one.example['id']}: {one.answer!r} instead of {one.example['reference']!r}")
    for kind, (right, asked) in figures.items():
        print(f"{kind}: {right} of {asked}")
    right, asked = figures["all"]
    return 0 if right >= REQUIRED_ACCURACY * asked else 1


if __name__ == "__main__":
    sys.exit(main())
