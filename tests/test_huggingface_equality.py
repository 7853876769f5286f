"""A checkpoint folder is a Hugging Face model folder: transformers opens it as it lies and computes the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import lively_model, shape, text_like_ids
from positron_mini.config import ModelConfig, SampleConfig
from positron_mini.generate import generate
from positron_mini.model import GPT
from positron_mini.store.checkpoint import load_model, model_files, open_checkpoint, write_checkpoint
from positron_mini.text.tokenizer import UNK, Tokenizer

CONFIGS = {
    "grouped heads, head_dim != width / heads": shape(),
    "one key head": shape(n_kv_head=1, head_dim=8),
    "own keys, head_dim = width / heads": shape(n_kv_head=4, head_dim=8),
    "other theta and eps": dataclasses.replace(shape(n_layer=1), rope_theta=500.0, norm_eps=1e-3),
}


def written(folder: Path, model: GPT, tokenizer: Tokenizer) -> Path:
    texts = model_files(model.config, tokenizer, chat_template=None, card="A model.")
    write_checkpoint(folder, model.state_dict(), texts, None)
    return folder


def opened(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert type(theirs).__name__ == "Qwen3ForCausalLM" and theirs.dtype == torch.float32
    return theirs.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_computes_equal_logits(tmp_path: Path, tiny_tokenizer: Tokenizer, name: str) -> None:
    config: ModelConfig = CONFIGS[name]
    model = lively_model(config)
    theirs = opened(written(tmp_path / "step_000001", model, tiny_tokenizer))
    assert sum(p.numel() for p in theirs.parameters()) == config.parameters, "the head is tied"
    ids = text_like_ids(512, 2, config.context_len)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-4)


def test_transformers_generates_the_same_greedy_tokens(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    model = lively_model(shape())
    theirs = opened(written(tmp_path / "step_000001", model, tiny_tokenizer))
    assert theirs.generation_config.eos_token_id in (2, [2])
    for prompt in ("Once upon a time", "A dog", "7 o'clock"):
        (ours,) = generate(model, tiny_tokenizer, prompt, SampleConfig(temperature=0.0, max_tokens=12))
        ids = torch.tensor([ours.prompt_token_ids])
        banned = sorted({UNK} | tiny_tokenizer.control_ids - {2})
        found = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, suppress_tokens=banned, temperature=None
        )
        assert found[0, ids.shape[1] :].tolist() == ours.token_ids


def test_a_written_model_comes_back_bit_for_bit(tmp_path: Path, tiny_tokenizer: Tokenizer, tiny_model: GPT) -> None:
    checkpoint = open_checkpoint(written(tmp_path / "step_000001", tiny_model, tiny_tokenizer))
    loaded = load_model(checkpoint)
    assert (checkpoint.config, checkpoint.step, checkpoint.is_chat) == (tiny_model.config, 1, False)
    assert checkpoint.end_ids == {2} and checkpoint.tokenizer.fingerprint == tiny_tokenizer.fingerprint
    state = tiny_model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    ids = text_like_ids(512, 1, 20)
    assert torch.equal(loaded(ids), tiny_model(ids)), "rotary tables included"
