"""How fast the ONNX wrapper generates, compared with onnxruntime-genai itself and with alternatives, in one run.

    python -m benchmarks.generation [--work build/benchmarks] [--rounds 5] [--json FILE] [--only part ...]

Makes a random Phi-3 of 330 M parameters (`random_phi3`), builds it as the flow does by default, and has all contenders
generate in turns. Parts: `speed` (one request and 16 rows, against og's bare loop, the source document's wrapper,
transformers' pipeline and llama.cpp), `prefix` (a second turn, a repeated system message), `calls` (overhead and memory
of a call on the embedded model), `blocks` (block sizes and quantisations). llama.cpp takes part where
requirements-benchmarks.in is installed. Prompts are random, so that no contender has seen their beginning.
"""

import argparse
import importlib.util
import random
import statistics
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks import contenders
from benchmarks.builds import make_onnx
from benchmarks.contenders import BareLoop, Contender, timed
from benchmarks.document_wrapper import DocumentWrapper
from benchmarks.gguf_files import make_gguf
from benchmarks.random_phi3 import Size, add_size_options, chosen_size, make_checkpoint
from benchmarks.report import Goal, in_turns, ratio, tell
from steps.config.schema import ROOT
from steps.wrappers.onnx.cpus import usable_cpus
from steps.wrappers.onnx.model import OnnxChatModel

Medians = dict[str, dict[str, float]]
DICE = random.Random(0)
TEMPLATE_TOKENS = 6
WORK = ROOT / "build" / "benchmarks"


def words(tokens: int) -> str:
    """Return a text that makes a prompt of *tokens* tokens, and was never seen before."""
    return "".join(DICE.choices(string.ascii_letters, k=tokens - TEMPLATE_TOKENS))


def rates(contender: Contender, prompt: int, answer: int, rows: int = 1) -> tuple[float, float, float]:
    """Return prefill, decode and whole tokens a second of one call with *rows* random prompts."""
    _, first = contender([words(prompt) for _ in range(rows)], 1)
    tokens, whole = contender([words(prompt) for _ in range(rows)], answer)
    return rows * prompt / first, (tokens - rows) / max(whole - first, 1e-9), tokens / whole


def speed(work: Path, size: Size, rounds: int, prompt: int, answer: int) -> tuple[Medians, list[Goal]]:
    """Measure one request and 16 rows."""
    checkpoint = make_checkpoint(work / "checkpoint", size)
    onnx = make_onnx(checkpoint, work)
    threads = usable_cpus()
    bare = BareLoop(onnx, threads)
    ours = contenders.wrapper(contenders.load(OnnxChatModel(), onnx))
    ways: dict[str, Contender] = {
        "wrapper": ours,
        "og's bare loop": bare,
        "og's Engine": contenders.OgEngine(onnx, threads),
        "document's wrapper": contenders.document(contenders.load(DocumentWrapper(), onnx)),
        "transformers pipeline": contenders.pipeline(checkpoint, threads),
    }
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        ways["llama.cpp Q4_0"] = contenders.llama_cpp(make_gguf(checkpoint, work, "Q4_0"), onnx, threads)
    else:
        print("llama.cpp is left out: pip install -r requirements-benchmarks.in")
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}

    def taker(name: str) -> Callable[[], float]:
        def take() -> float:
            taken[name].append(rates(ways[name], prompt, answer))
            return taken[name][-1][2]

        return take

    whole = in_turns(rounds, {name: taker(name) for name in ways})
    prefill = {name: [each[0] for each in figures[1:]] for name, figures in taken.items()}
    decode = {name: [each[1] for each in figures[1:]] for name, figures in taken.items()}
    batch = in_turns(
        rounds,
        {
            "wrapper, 16 rows": lambda: rates(ours, 20, answer, 16)[2],
            "og's bare batch of 16": lambda: rates(bare, 20, answer, 16)[2],
        },
    )
    medians: Medians = {
        name: {
            "prefill tok/s": statistics.median(prefill[name]),
            "decode tok/s": statistics.median(decode[name]),
            "whole tok/s": statistics.median(whole[name]),
        }
        for name in ways
    }
    medians |= {name: {"whole tok/s": statistics.median(figures)} for name, figures in batch.items()}
    goals = [
        Goal("one request: wrapper over og's bare loop", ratio(whole, "wrapper", "og's bare loop"), low=0.97),
        Goal(
            "16 rows: wrapper over og's bare batch", ratio(batch, "wrapper, 16 rows", "og's bare batch of 16"), low=0.95
        ),
    ]
    for other in ("document's wrapper", "transformers pipeline", "llama.cpp Q4_0"):
        if other in ways:
            goals.append(Goal(f"prefill: wrapper over {other}", ratio(prefill, "wrapper", other), low=1))
            goals.append(Goal(f"decode: wrapper over {other}", ratio(decode, "wrapper", other), low=1))
    return medians, goals


def prefix(work: Path, size: Size, rounds: int, prompt: int) -> tuple[Medians, list[Goal]]:
    """Measure the time to the first token of a first and a second turn, and of a system message seen before."""
    onnx = make_onnx(make_checkpoint(work / "checkpoint", size), work)
    model = contenders.load(OnnxChatModel(), onnx)

    def first_token(messages: list[dict[str, str]]) -> float:
        return timed(lambda: len(model.predict(None, {"messages": messages, "max_tokens": 1})))[1]

    def conversation() -> tuple[float, float]:
        messages = [{"role": "user", "content": words(prompt)}]
        first = first_token(messages)
        # Not what was generated: random weights say words that this tokenizer reads letter by letter.
        messages += [{"role": "assistant", "content": words(40)}, {"role": "user", "content": words(30)}]
        return first, first_token(messages)

    def system() -> tuple[float, float]:
        shared = {"role": "system", "content": words(prompt)}
        first, second = (first_token([shared, {"role": "user", "content": words(30)}]) for _ in range(2))
        return first, second

    turns = [conversation() for _ in range(rounds + 1)][1:]
    again = [system() for _ in range(rounds + 1)][1:]
    medians: Medians = {
        name: {
            "first, ms": 1000 * statistics.median(first for first, _ in figures),
            "second, ms": 1000 * statistics.median(second for _, second in figures),
        }
        for name, figures in (("second turn", turns), ("same system message", again))
    }
    return medians, [
        Goal("time to first token: second turn over first", statistics.median(b / a for a, b in turns), high=0.4),
        Goal("the same: system message seen before", statistics.median(b / a for a, b in again), high=0.4),
    ]


def calls(work: Path, rounds: int, answer: int = 8) -> tuple[Medians, list[Goal]]:
    """Measure what a call costs beyond og's loop, on the embedded model, and whether memory grows with calls."""
    onnx = make_onnx(ROOT / "models" / "tiny_phi3", work)
    started = time.perf_counter()
    model = contenders.load(OnnxChatModel(), onnx)
    loading = time.perf_counter() - started
    ours, bare = contenders.wrapper(model), BareLoop(onnx, usable_cpus())
    cities = ["What is the capital of Spain?", "What is the capital of Italy?", "What is the capital of Chile?"]

    def seconds(contender: Contender) -> Callable[[], float]:
        return lambda: contender([DICE.choice(cities)], answer)[1]

    taken = in_turns(40 * rounds, {"wrapper": seconds(ours), "bare": seconds(bare)})
    extra = statistics.median(taken["wrapper"]) - statistics.median(taken["bare"])

    def resident() -> float:
        own = psutil.Process()
        return float(sum(each.memory_info().rss for each in (own, *own.children()))) / 2**20

    memory = []
    for count in range(1101):
        ours([f"{DICE.choice(cities)} {count}"], answer)
        if count in (100, 1100):
            memory.append(resident())
    medians: Medians = {
        "embedded model": {
            "a call, ms": 1000 * statistics.median(taken["wrapper"]),
            "og's loop, ms": 1000 * statistics.median(taken["bare"]),
            "MiB after 100 calls": memory[0],
            "MiB after 1,100": memory[1],
            "loading, s": loading,
        }
    }
    return medians, [
        Goal("overhead of a call on the embedded model, ms", 1000 * extra, high=5),
        Goal("memory after 1,000 calls more, over before", memory[1] / memory[0], high=1.02),
    ]


def blocks(work: Path, size: Size, rounds: int, prompt: int, answer: int) -> tuple[Medians, list[Goal]]:
    """Measure what block size and quantisation cost and gain: og's bare loop on each build."""
    checkpoint = make_checkpoint(work / "checkpoint", size)
    builds = {
        **{f"int4, block {n}": ["onnx=int4_cpu", f"build_onnx_wrapper.block_size={n}"] for n in (16, 32, 64, 128, 256)},
        "int4, block 128, accuracy level 0": [
            "build_onnx_wrapper.block_size=128",
            "build_onnx_wrapper.accuracy_level=0",
        ],
        "int8, block 128": ["onnx=int8_cpu", "build_onnx_wrapper.block_size=128"],
        "fp32": ["onnx=fp32_cpu"],
    }
    folders = {name: make_onnx(checkpoint, work, *overrides) for name, overrides in builds.items()}
    loops = {name: BareLoop(folder, usable_cpus()) for name, folder in folders.items()}
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in loops}
    for _ in range(rounds + 1):
        for name, loop in loops.items():
            taken[name].append(rates(loop, prompt, answer))
    return {
        name: {
            "prefill tok/s": statistics.median(each[0] for each in figures[1:]),
            "decode tok/s": statistics.median(each[1] for each in figures[1:]),
            "MB": sum(path.stat().st_size for path in folders[name].iterdir()) / 1e6,
        }
        for name, figures in taken.items()
    }, []


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where models are made and kept")
    parser.add_argument("--rounds", type=int, default=5, help="how often each figure is taken (default: 5)")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt (default: 200)")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer (default: 64)")
    add_size_options(parser, Size())
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parts: dict[str, Callable[[Any], tuple[Medians, list[Goal]]]] = {
        "speed": lambda a: speed(a.work, chosen_size(a), a.rounds, a.prompt, a.answer),
        "prefix": lambda a: prefix(a.work, chosen_size(a), a.rounds, 4 * a.prompt),
        "calls": lambda a: calls(a.work, a.rounds),
        "blocks": lambda a: blocks(a.work, chosen_size(a), a.rounds, a.prompt, a.answer),
    }
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="which parts (default: all)")
    arguments = parser.parse_args()

    medians: Medians = {}
    goals: list[Goal] = []
    for part in arguments.only:
        more, reached = parts[part](arguments)
        tell(more, reached, None)
        medians |= more
        goals += reached
    if arguments.json:
        tell(medians, goals, arguments.json)


if __name__ == "__main__":
    main()
