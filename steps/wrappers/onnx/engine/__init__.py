"""The engine: the program in which onnxruntime-genai ("og") continues sequences. Token ids in, token ids out.

    __main__.py      the program: messages in and out
    scheduler.py     which sequences share a batch, and which batch takes the next step
    runner.py        og computes the prompts of a batch and its steps; what a step costs
    sequence.py      a prompt that is being continued; a batch of them
    prefix_cache.py  KV caches of finished sequences, for prompts that begin alike
    og_model.py      the model's folder, loaded by og
    outbox.py        which tokens are sent now
    sampling.py      temperature, top_k and top_p
    logprobs.py      log probabilities of tokens, for requests that ask for them
    stats.py         what the scheduler is doing, in numbers

It imports neither MLflow nor pandas, so this file must hold no code.
"""
