"""The real runtimes: transformers, mlx-lm and llama.cpp open what we write, split text as we do, compute and stop as we do.

mlx-lm and llama.cpp run in processes of their own, all jobs in one process each, because both keep threads that a later fork must not copy.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.chats import LEARNED, write_model
from helpers.project import PROGRAMS
from helpers.texts import AWKWARD_TEXTS, made_stories
from positron_mini.config import ModelConfig, SampleConfig, preset
from positron_mini.export.model_files import export_gguf
from positron_mini.generate import generate
from positron_mini.model import GPT, IGNORED, KVCache
from positron_mini.store.checkpoint import open_checkpoint
from positron_mini.text.chat_format import Message, encode_chat
from positron_mini.text.tokenizer import BOS, UNK, Tokenizer, train_tokenizer
from positron_mini.text.tokenizer.model_file import FIRST_BYTE

TOKENS = 64
TIE = 1e-3  # two tokens whose log-probabilities are closer may swap places
TOLERANCE = 1e-3  # nats, of an F32 model in another runtime; measured: below 2e-5
PROMPTS = ("Once upon a time, there was a", "One day, Tom saw a big dog. ")
CONVERSATIONS = (
    *([{"role": "user", "content": question}] for question in LEARNED),
    [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": LEARNED["Who are you?"]},
        {"role": "user", "content": "a\n\n b"},
    ],
    [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "Zoë says: 你好 🐱\tok"}],
)


# --- where the runtimes are -------------------------------------------------------------------------------------------------------------


def needs(module: str, has_wheels: bool) -> None:
    """Nothing, or a skip where no wheel of `module` exists for this platform. Where one exists and is missing, the test fails."""
    if importlib.util.find_spec(module) is None and not has_wheels:
        pytest.skip(f"{module} has no wheel for {platform.system()} {platform.machine()}")


def run_worker(script: str, jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The answers of a runtime to `jobs`, from one process that ends before this returns."""
    out = folder / f"{script}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / script), str(out)],
        input=json.dumps(jobs), capture_output=True, text=True, timeout=150, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(out.read_text())
    return answers


# --- the models -------------------------------------------------------------------------------------------------------------------------


@dataclass
class Specimen:
    """A model, its tokenizer, its folder and its GGUF files by type."""

    model: GPT
    tokenizer: Tokenizer
    folder: Path
    gguf: dict[str, Path]
    is_chat: bool = False
    greedy: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)

    @property
    def banned(self) -> list[int]:
        """Ids that a continuation of fixed length must not hold: those without text, and bytes of longer characters, because llama.cpp
        reports no probability inside a character."""
        return sorted(self.tokenizer.control_ids | {UNK} | set(range(FIRST_BYTE + 0x80, FIRST_BYTE + 256)))

    def prompts(self) -> list[list[int]]:
        return [[BOS, *self.tokenizer.encode(text)] for text in PROMPTS]


def steps(model: GPT, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], lr: float) -> None:
    """Train on the batches in turn."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for ids, targets in batches:
        loss = model.loss(ids, targets) / (targets != IGNORED).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def rows_of(sequences: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of token sequences, padded."""
    width = max(map(len, sequences)) - 1
    ids, targets = torch.zeros(len(sequences), width, dtype=torch.long), torch.full((len(sequences), width), IGNORED)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence) - 1] = torch.tensor(sequence[:-1])
        targets[i, : len(sequence) - 1] = torch.tensor(
            [token if masks is None or masks[i][at] else IGNORED for at, token in enumerate(sequence) if at > 0]
        )
    return ids, targets


def shape_of(name: str, vocab_size: int) -> ModelConfig:
    p = preset(name)
    return ModelConfig(p.n_layer, p.n_embd, p.n_head, p.n_head, p.head_dim, p.ffn, p.context_len, vocab_size)


def specimen(folder: Path, model: GPT, tokenizer: Tokenizer, dtypes: Sequence[str], *, is_chat: bool = False) -> Specimen:
    checkpoint = open_checkpoint(write_model(folder, model.eval(), tokenizer, is_chat=is_chat))
    ggufs = {dtype: export_gguf(checkpoint, folder.with_name(f"{folder.name}-gguf"), dtype).path for dtype in dtypes}
    return Specimen(model, tokenizer, folder, ggufs, is_chat)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Specimen]:
    """PicoGPT trained on made stories, the same taught to answer, and a TinyGPT of random weights with all its 16,000 pieces."""
    folder = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(0)
    stories = made_stories(700, seed=5)
    pico_tokenizer = train_tokenizer(stories, 700, threads=1)
    documents = [pico_tokenizer.encode_document(story) for story in stories if len(story) < 500]
    pico = GPT(shape_of("PicoGPT", 700)).init_weights(0)
    steps(pico, [rows_of(documents[i : i + 8]) for i in range(0, 8 * 60, 8)], lr=4e-3)
    chat = copy.deepcopy(pico)
    taught = [encode_chat(pico_tokenizer, [Message("user", q), Message("assistant", a)]) for q, a in LEARNED.items()]
    steps(chat, [rows_of([row.ids for row in taught], [row.trained for row in taught])] * 60, lr=2e-3)
    return {
        "pico": specimen(folder / "pico", pico, pico_tokenizer, ("f32", "f16", "bf16", "q8_0", "q4_0")),
        "chat": specimen(folder / "chat", chat, pico_tokenizer, ("f32", "q8_0"), is_chat=True),
        "tiny": specimen(folder / "tiny", sharpened(shape_of("TinyGPT", 16_000)), large_tokenizer(), ("f32", "q8_0")),
    }


def sharpened(config: ModelConfig) -> GPT:
    """A model of random weights whose next token is seldom a tie."""
    model = GPT(config).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def large_tokenizer() -> Tokenizer:
    """A tokenizer of 16,000 pieces, learned from stories and made words."""
    rng = random.Random(0)
    syllables = [a + b + c for a in "bcdfghjklmnprstvz" for b in "aeiou" for c in "bdgklmnprstz"]
    words = ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(20_000)]
    return train_tokenizer([" ".join(words), *made_stories(300)], 16_000, threads=1)


@torch.inference_mode()
def greedy(specimen: Specimen, prompt: list[int]) -> list[tuple[int, float, float]]:
    """Our likeliest continuation: ids, their log-probabilities, and by how much each leads the next likeliest."""
    cache, ids, found = KVCache(specimen.model.config, 1), prompt, []
    for _ in range(TOKENS):
        logprobs = specimen.model(torch.tensor([ids]), cache)[0, -1].log_softmax(-1)
        allowed = logprobs.clone()
        allowed[specimen.banned] = -torch.inf
        best = allowed.topk(2)
        token = int(best.indices[0])
        found.append((token, float(logprobs[token]), float(best.values[0] - best.values[1])))
        ids = [token]
    return found


def agrees(ours: Sequence[tuple[int, float, float]], theirs: Sequence[Sequence[float]], tolerance: float = TOLERANCE) -> None:
    """Nothing when both took the same 64 tokens with the same log-probabilities. After a tie the texts may part."""
    assert len(ours) == len(theirs) == TOKENS
    for at, ((token, logprob, lead), (their_token, their_logprob)) in enumerate(zip(ours, theirs, strict=True)):
        if token != their_token:
            assert lead < TIE, f"token {at} of {TOKENS}: {their_token} instead of {token}, which leads by {lead:.4f}"
            return
        assert abs(logprob - their_logprob) <= tolerance, f"token {at}: {their_logprob} instead of {logprob}"


@pytest.fixture(scope="module")
def expected(zoo: dict[str, Specimen]) -> dict[str, list[list[tuple[int, float, float]]]]:
    """Our continuations of the prompts, by model."""
    return {name: [greedy(s, prompt) for prompt in s.prompts()] for name, s in zoo.items()}


@dataclass
class Ending:
    """The beginning of a story, and what we write after it until eos."""

    prompt: list[int]
    text: str


def endings(specimen: Specimen) -> list[Ending]:
    """Three stories without their last words, which the model itself brings to an end."""
    found = []
    for story in made_stories(400, seed=6):
        prompt = [BOS, *specimen.tokenizer.encode(story[: len(story) * 3 // 4])]
        (made,) = generate(specimen.model, specimen.tokenizer, prompt, SampleConfig(temperature=0.0, max_tokens=TOKENS))
        if made.finish_reason == "stop":
            found.append(Ending(prompt, made.text))
        if len(found) == 3:
            return found
    raise AssertionError("the model ends too few stories")


@pytest.fixture(scope="module")
def stories_ended(zoo: dict[str, Specimen]) -> list[Ending]:
    """Three endings by PicoGPT."""
    return endings(zoo["pico"])


def job(specimen: Specimen, path: Path) -> dict[str, Any]:
    """What a worker is asked about a model."""
    return {
        "path": str(path), "context": specimen.model.config.context_len, "texts": AWKWARD_TEXTS, "prompts": specimen.prompts(),
        "tokens": TOKENS, "banned": specimen.banned, "endings": [], "chats": list(CONVERSATIONS) if specimen.is_chat else [],
        "quantised": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def llama(
    zoo: dict[str, Specimen], stories_ended: list[Ending], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], dict[str, Any]]:
    """llama.cpp's answers by model and type."""
    needs("xllamacpp", platform.system() != "Windows")
    names = [(name, dtype) for name, s in zoo.items() for dtype in s.gguf]
    jobs = [job(zoo[n], zoo[n].gguf[dtype]) | ({"exact": True} if dtype == "f32" else {"exact": False, "texts": []}) for n, dtype in names]
    jobs[names.index(("pico", "f32"))]["endings"] = [ending.prompt for ending in stories_ended]
    names.append(("pico", "f32 with default settings"))
    jobs.append(jobs[0] | {"exact": False, "texts": []})
    return dict(zip(names, run_worker("llama_worker.py", jobs, tmp_path_factory.mktemp("llama")), strict=True))


@pytest.fixture(scope="module")
def mlx(zoo: dict[str, Specimen], stories_ended: list[Ending], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """mlx-lm's answers by model."""
    needs("mlx_lm", platform.system() == "Linux" or (platform.system(), platform.machine()) == ("Darwin", "arm64"))
    folder = tmp_path_factory.mktemp("mlx")
    jobs = [job(s, s.folder) | {"quantised": str(folder / "q4") if name == "pico" else None} for name, s in zoo.items()]
    jobs[list(zoo).index("pico")]["endings"] = [ending.prompt for ending in stories_ended]
    return dict(zip(zoo, run_worker("mlx_worker.py", jobs, folder), strict=True))


@pytest.fixture(scope="module")
def hugging(zoo: dict[str, Specimen]) -> dict[str, tuple[Any, Any]]:
    """Model and tokenizer of every folder, as transformers opens them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return {
        name: (AutoModelForCausalLM.from_pretrained(s.folder).eval(), AutoTokenizer.from_pretrained(s.folder)) for name, s in zoo.items()
    }


# --- tokens -----------------------------------------------------------------------------------------------------------------------------


def mismatches(tokenizer: Tokenizer, theirs: Sequence[Sequence[int]]) -> list[str]:
    assert len(theirs) == len(AWKWARD_TEXTS) == 300
    return [text for text, ids in zip(AWKWARD_TEXTS, theirs, strict=True) if list(ids) != [BOS, *tokenizer.encode(text)]]


@pytest.mark.parametrize("name", ["pico", "tiny"])
def test_transformers_splits_300_awkward_texts_as_we_do(zoo: Any, hugging: Any, name: str) -> None:
    assert mismatches(zoo[name].tokenizer, hugging[name][1](AWKWARD_TEXTS).input_ids) == []


@pytest.mark.parametrize("name", ["pico", "tiny"])
def test_mlx_splits_300_awkward_texts_as_we_do(zoo: Any, mlx: Any, name: str) -> None:
    assert mismatches(zoo[name].tokenizer, mlx[name]["ids"]) == []


@pytest.mark.parametrize("name", ["pico", "tiny"])
def test_llama_cpp_splits_300_awkward_texts_as_we_do(zoo: Any, llama: Any, name: str) -> None:
    assert mismatches(zoo[name].tokenizer, llama[name, "f32"]["ids"]) == []


# --- the same numbers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pico", "chat", "tiny"])
def test_L7_transformers_continues_with_the_same_64_tokens(zoo: Any, hugging: Any, expected: Any, name: str) -> None:
    model, _ = hugging[name]
    for prompt, ours in zip(zoo[name].prompts(), expected[name], strict=True):
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, max_new_tokens=TOKENS,
            suppress_tokens=zoo[name].banned, eos_token_id=None, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        tokens = made.sequences[0, len(prompt) :].tolist()
        logprobs = [float(row[0].log_softmax(-1)[token]) for row, token in zip(made.logits, tokens, strict=True)]
        agrees(ours, list(zip(tokens, logprobs, strict=True)))


@pytest.mark.parametrize("name", ["pico", "chat", "tiny"])
def test_mlx_continues_with_the_same_64_tokens(mlx: Any, expected: Any, name: str) -> None:
    for ours, theirs in zip(expected[name], mlx[name]["greedy"], strict=True):
        agrees(ours, theirs)


@pytest.mark.parametrize("name", ["pico", "chat", "tiny"])
def test_L7_llama_cpp_continues_with_the_same_64_tokens(llama: Any, expected: Any, name: str) -> None:
    for ours, theirs in zip(expected[name], llama[name, "f32"]["greedy"], strict=True):
        agrees(ours, theirs)


def test_llama_cpp_continues_with_the_same_64_tokens_with_its_default_settings(llama: Any, expected: Any) -> None:
    """Keys and values in 16 bits, and attention that rounds to them too."""
    for ours, theirs in zip(expected["pico"], llama["pico", "f32 with default settings"]["greedy"], strict=True):
        agrees(ours, theirs, 0.01)


def test_the_continuations_are_no_ties(expected: Any) -> None:
    leads = [lead for rows in expected.values() for row in rows for _, _, lead in row]
    assert sum(lead < TIE for lead in leads) <= 0.02 * len(leads)


def stored(path: Path, model: GPT) -> GPT:
    """A model of the weights that a GGUF file really holds."""
    import gguf

    from positron_mini.export.model_files import tensor_name

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    twin = copy.deepcopy(model)
    for name, parameter in twin.named_parameters():
        tensor = tensors[tensor_name(name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        parameter.data = torch.from_numpy(np.array(values, dtype=np.float32)).view(parameter.shape)
    return twin


@torch.inference_mode()
def forced(model: GPT, prompt: list[int], tokens: Sequence[int]) -> list[float]:
    """Our log-probabilities of given tokens after a prompt."""
    logprobs = model(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)
    return [float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(tokens)]


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("pico", "f16", 0.01), ("pico", "bf16", 0.05), ("pico", "q8_0", 0.1), ("pico", "q4_0", 0.1),
        ("chat", "q8_0", 0.15), ("tiny", "q8_0", 0.25),
    ],
)  # fmt: skip
def test_L7_llama_cpp_computes_with_the_stored_weights_of_every_type(zoo: Any, llama: Any, name: str, dtype: str, tolerance: float) -> None:
    """Against our model with the weights read back from the file. Products with stored blocks also round the activations, to 8 bits."""
    twin = stored(zoo[name].gguf[dtype], zoo[name].model)
    for prompt, theirs in zip(zoo[name].prompts(), llama[name, dtype]["greedy"], strict=True):
        tokens = [int(token) for token, _ in theirs]
        differences = [abs(a - b) for a, (_, b) in zip(forced(twin, prompt, tokens), theirs, strict=True)]
        assert len(tokens) == TOKENS and max(differences) <= tolerance, max(differences)


def test_mlx_runs_its_own_4_bit_conversion(mlx: Any, expected: Any) -> None:
    """Both write the same, up to a token whose lead over the next likeliest is smaller than what 4 bits may change."""
    for ours, theirs in zip(expected["pico"], mlx["pico"]["quantised"], strict=True):
        same = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a[0] != b[0]), TOKENS)
        assert same == TOKENS or ours[same][2] < 1.0, (same, ours[same])
        assert all(abs(a[1] - b[1]) < 1.0 for a, b in list(zip(ours, theirs, strict=True))[:same])


# --- conversations and endings ----------------------------------------------------------------------------------------------------------


def written_out(messages: Sequence[dict[str, str]]) -> str:
    """The prompt of a conversation, by hand."""
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return f"<s>{turns}<|im_start|>assistant\n"


def ids_of(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> list[int]:
    return encode_chat(tokenizer, [Message(m["role"], m["content"]) for m in messages], add_generation_prompt=True).ids  # type: ignore[arg-type]


def test_transformers_renders_and_ends_conversations_as_we_do(zoo: Any, hugging: Any) -> None:
    model, tokenizer = hugging["chat"]
    for messages in CONVERSATIONS:
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == written_out(messages)
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert inputs["input_ids"][0].tolist() == ids_of(zoo["chat"].tokenizer, messages)
        if len(messages) == 1:
            made = model.generate(**inputs, do_sample=False, temperature=None, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
            assert int(made[-1]) == zoo["chat"].tokenizer.im_end_id
            assert tokenizer.decode(made, skip_special_tokens=True) == LEARNED[messages[0]["content"]]


def test_mlx_renders_and_ends_conversations_as_we_do(zoo: Any, mlx: Any) -> None:
    for messages, theirs in zip(CONVERSATIONS, mlx["chat"]["chats"], strict=True):
        assert theirs["prompt"] == written_out(messages)
        assert theirs["ids"] == ids_of(zoo["chat"].tokenizer, messages)
        if len(messages) == 1:
            assert (theirs["text"], theirs["reason"]) == (LEARNED[messages[0]["content"]], "stop")


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_llama_cpp_renders_and_ends_conversations_as_we_do(zoo: Any, llama: Any, dtype: str) -> None:
    for messages, theirs in zip(CONVERSATIONS, llama["chat", dtype]["chats"], strict=True):
        ids = ids_of(zoo["chat"].tokenizer, messages)
        assert theirs["prompt"] == written_out(messages).removeprefix("<s>"), "llama.cpp puts bos first when it makes ids"
        assert theirs["ids"] == ids and theirs["prompt_tokens"] == len(ids)
        if len(messages) == 1:
            assert (theirs["text"], theirs["reason"]) == (LEARNED[messages[0]["content"]], "stop")


def test_a_story_ends_in_every_runtime_where_it_ends_here(stories_ended: Any, hugging: Any, mlx: Any, llama: Any) -> None:
    ours = [ending.text for ending in stories_ended]
    assert [(row["text"], row["reason"]) for row in llama["pico", "f32"]["endings"]] == [(text, "eos") for text in ours]
    assert [(row["text"], row["reason"]) for row in mlx["pico"]["endings"]] == [(text, "stop") for text in ours]
    model, tokenizer = hugging["pico"]
    for ending in stories_ended:
        ids = torch.tensor([ending.prompt])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, max_new_tokens=TOKENS)
        assert int(made[0, -1]) == 2 and tokenizer.decode(made[0, len(ending.prompt) :], skip_special_tokens=True) == ending.text
