"""Runs model folders in mlx-lm on the CPU and says what it makes of texts, prompts and conversations. A process of its own.

Reads a list of jobs as JSON from stdin: {"path", "texts", "prompts", "tokens", "banned", "endings", "chats", "quantised"}; writes
their answers to the file named by its argument.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import mlx.core as mx
from mlx_lm import convert, load, stream_generate
from mlx_lm.models.cache import make_prompt_cache


def greedy(model: Any, prompt: list[int], tokens: int, banned: list[int]) -> list[tuple[int, float]]:
    """The likeliest continuation, as ids with their log-probabilities; `banned` ids are not taken."""
    cache, ids, found = make_prompt_cache(model), prompt, []
    for _ in range(tokens):
        logits = model(mx.array([ids]), cache=cache)[0, -1].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits)
        allowed = mx.array(logprobs)
        allowed[mx.array(banned)] = -float("inf")
        token = int(mx.argmax(allowed))
        found.append((token, float(logprobs[token])))
        ids = [token]
    return found


def ending(model: Any, tokenizer: Any, prompt: list[int], tokens: int) -> dict[str, Any]:
    """What is written until the model itself ends, and why it ended."""
    parts = list(stream_generate(model, tokenizer, prompt, max_tokens=tokens))
    return {"text": "".join(part.text for part in parts), "reason": parts[-1].finish_reason}


def chat(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, Any]:
    """The prompt that a conversation becomes, its ids, and the answer."""
    ids = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return {"prompt": prompt, "ids": ids, **ending(model, tokenizer, ids, 40)}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """The answers to one job."""
    model, tokenizer = load(job["path"])
    result = {
        "ids": [tokenizer.encode(text) for text in job["texts"]],
        "greedy": [greedy(model, prompt, job["tokens"], job["banned"]) for prompt in job["prompts"]],
        "endings": [ending(model, tokenizer, prompt, job["tokens"]) for prompt in job["endings"]],
        "chats": [chat(model, tokenizer, messages) for messages in job["chats"]],
    }
    if job["quantised"]:
        convert(job["path"], mlx_path=job["quantised"], quantize=True, q_bits=4, q_group_size=32)
        small, _ = load(job["quantised"])
        result["quantised"] = [greedy(small, prompt, job["tokens"], job["banned"]) for prompt in job["prompts"]]
    return result


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    results = [work(job) for job in json.load(sys.stdin)]
    with open(sys.argv[1], "w") as handle:
        json.dump(results, handle)
