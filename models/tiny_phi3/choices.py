"""Write `data/capitals_choice.jsonl`: a question of `data/capitals.jsonl` for each country, with four answers to it.

    python -m models.tiny_phi3.choices

The wrong answers name the capitals of other countries, so that every answer is one the model might give.
"""

# ruff: noqa: S311  # seeded on purpose: the same choices every time

import json
import random
from pathlib import Path

from models.tiny_phi3.check import TASK, read_task
from models.tiny_phi3.conversations import answer, read_capitals

CAPITALS = Path(__file__).with_name("capitals.csv")


def write_choices(path: Path, wrong: int = 3, seed: int = 0) -> None:
    """Write to *path* the first question about each country, its answer among *wrong* others, at a place of chance."""
    rng = random.Random(f"choices {seed}")
    capitals = read_capitals(CAPITALS)
    references = {answer(country, capital): (country, capital) for country, capital in capitals.items()}
    lines: dict[str, str] = {}
    for example in read_task(TASK):
        country, capital = references[example["reference"]]
        others = sorted(set(capitals.values()) - {capital})
        choices = [answer(country, each) for each in [capital, *rng.sample(others, wrong)]]
        rng.shuffle(choices)
        fields = {key: example[key] for key in ("id", "messages", "reference")}
        lines.setdefault(country, json.dumps({**fields, "choices": choices}, ensure_ascii=False) + "\n")
    path.write_text("".join(lines.values()), encoding="utf-8")


if __name__ == "__main__":
    write_choices(TASK.with_name("capitals_choice.jsonl"))
