"""What the scheduler is doing, in numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """What a scheduler is doing, and has done since its start."""

    waiting: int  # sequences
    running: int  # sequences
    batches: list[int]  # how many sequences each has, finished ones included
    kv_cache: int  # reserved by the batches, in tokens
    prefix_cache: int  # size in tokens
    prefix_cache_hits: int
    prefix_cache_hit_tokens: int  # prompt tokens that were not computed again
    prompt_tokens: int  # computed
    generators: int  # made
