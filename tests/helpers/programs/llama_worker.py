"""Runs GGUF files in llama.cpp and says what it makes of texts, prompts and conversations. A process of its own: it keeps threads.

Reads a list of jobs as JSON from stdin: {"path", "context", "exact", "texts", "prompts", "tokens", "banned", "endings", "chats"};
writes their answers to the file named by its argument. "exact" turns off what llama.cpp rounds to 16 bits by default.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

import xllamacpp


class Llama:
    """One model behind llama.cpp's own server, on a loopback port that the system chose."""

    def __init__(self, path: str, context: int, *, exact: bool) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup = False
        params.verbosity = 0
        params.port = 0
        self.server = xllamacpp.Server(params)

    def ask(self, route: str, **body: Any) -> Any:
        """The server's answer to a request."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.server.listening_address + route, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


def greedy(llama: Llama, prompt: list[int], tokens: int, banned: list[int]) -> list[tuple[int, float]]:
    """The likeliest continuation, as ids with their log-probabilities; `banned` ids are not taken."""
    bias = [[token, False] for token in banned]
    answer = llama.ask("/completion", prompt=prompt, n_predict=tokens, temperature=0, n_probs=1, logit_bias=bias, cache_prompt=False)
    return [(row["id"], row["logprob"]) for row in answer["completion_probabilities"]]


def ending(llama: Llama, prompt: list[int], tokens: int) -> dict[str, Any]:
    """What is written until the model itself ends, and why it ended."""
    answer = llama.ask("/completion", prompt=prompt, n_predict=tokens, temperature=0, return_tokens=True)
    return {"text": answer["content"], "reason": answer["stop_type"]}


def chat(llama: Llama, messages: list[dict[str, str]]) -> dict[str, Any]:
    """The prompt that a conversation becomes, its ids, and the answer."""
    prompt = llama.ask("/apply-template", messages=messages)["prompt"]
    answer = llama.ask("/v1/chat/completions", messages=messages, temperature=0, max_tokens=40)
    return {
        "prompt": prompt,
        "ids": llama.ask("/tokenize", content=prompt, add_special=True, parse_special=True)["tokens"],
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "text": answer["choices"][0]["message"]["content"],
        "reason": answer["choices"][0]["finish_reason"],
    }


def work(job: dict[str, Any]) -> dict[str, Any]:
    """The answers to one job."""
    llama = Llama(job["path"], job["context"], exact=job["exact"])
    return {
        "ids": [llama.ask("/tokenize", content=text, add_special=True, parse_special=False)["tokens"] for text in job["texts"]],
        "greedy": [greedy(llama, prompt, job["tokens"], job["banned"]) for prompt in job["prompts"]],
        "endings": [ending(llama, prompt, job["tokens"]) for prompt in job["endings"]],
        "chats": [chat(llama, messages) for messages in job["chats"]],
    }


if __name__ == "__main__":
    results = [work(job) for job in json.load(sys.stdin)]
    with open(sys.argv[1], "w") as handle:
        json.dump(results, handle)
