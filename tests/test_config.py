"""Laws of the settings: ranges, presets, overrides, Hugging Face's spelling, and what counts as given."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.models import shape
from positron_mini.config import (
    PRESETS,
    ModelConfig,
    SampleConfig,
    TrainConfig,
    changed_fields,
    default_lr,
    given_flags,
    is_milestone,
    model_config,
    parse_milestones,
    preset,
    self_logit_std,
)
from positron_mini.errors import CheckpointError, UsageError

# --- shapes ------------------------------------------------------------------------------------------------------------------------


def test_presets_are_the_table_of_the_design() -> None:
    table = {name: dataclasses.astuple(p) for name, p in PRESETS.items()}
    assert table == {
        "PicoGPT": (4, 128, 4, 32, 384, 256, 2_048),
        "MicroGPT": (6, 192, 6, 32, 512, 512, 4_096),
        "TinyGPT": (8, 320, 8, 32, 960, 512, 16_000),
        "SmallGPT": (8, 512, 8, 64, 1_536, 512, 16_000),
        "BaseGPT": (12, 768, 12, 64, 2_048, 1_024, 16_000),
    }
    for p in PRESETS.values():
        assert p.n_embd % 64 == p.ffn % 64 == 0 and p.head_dim in (32, 64)


def test_the_case_of_a_preset_does_not_matter_and_a_typing_error_is_answered_with_the_nearest() -> None:
    assert preset("tinygpt") is PRESETS["TinyGPT"]
    with pytest.raises(UsageError, match=r"unknown preset 'TinyGTP'; there are PicoGPT, MicroGPT") as caught:
        preset("TinyGTP")
    assert caught.value.hint == "--config TinyGPT"


def test_overrides_replace_single_values_and_heads_keep_their_own_keys() -> None:
    plain = model_config(TrainConfig(config="PicoGPT"), 300)
    assert plain == ModelConfig(4, 128, 4, 4, 32, 384, 256, 300)
    assert model_config(TrainConfig(config="PicoGPT", n_head=2), 300) == dataclasses.replace(plain, n_head=2, n_kv_head=2)
    changed = TrainConfig(config="PicoGPT", n_layer=1, n_embd=64, n_head=6, n_kv_head=3, head_dim=16, ffn=80, context_len=40)
    assert model_config(changed, 300) == ModelConfig(1, 64, 6, 3, 16, 80, 40, 300)


@pytest.mark.parametrize("name", ["n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "ffn"])
@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_an_absurd_override_is_refused_and_never_taken_for_absent(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"--{name}"):
        model_config(TrainConfig(config="PicoGPT", **{name: value}), 300)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 0}, "--n_layer is 0"),
        ({"vocab_size": -5}, "--vocab_size is -5"),
        ({"n_embd": True}, "--n_embd is True"),
        ({"n_embd": 32.0}, "--n_embd is 32.0"),
        ({"n_kv_head": 3}, "--n_head 4 is not a multiple of --n_kv_head 3"),
        ({"head_dim": 15}, "--head_dim 15 is odd"),
        ({"rope_theta": math.nan}, "rope_theta nan"),
        ({"norm_eps": 0.0}, "norm_eps 0.0"),
        ({"n_embd": 1_000_000, "ffn": 1_000_000}, "more than 20,000,000,000"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_in_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        shape(**changes)
    assert said in caught.value.message and caught.value.hint and "\n" not in caught.value.message


def test_work_per_token_is_six_operations_per_weight_and_the_attention() -> None:
    config = ModelConfig(n_layer=1, n_embd=4, n_head=1, n_kv_head=1, head_dim=2, ffn=3, context_len=9, vocab_size=10)
    blocks = 4 * (4 * 2) + 2 * 2 + 3 * 4 * 3 + 2 * 4
    assert config.block_parameters == blocks and config.parameters == blocks + 40 + 4
    # a query meets 5 of 9 keys on average; two products of 2 channels, 2 operations each, forward and twice that backward
    assert config.flops_per_token() == 6 * (blocks + 40) + 5 * 2 * 2 * 2 * 3


# --- Hugging Face ------------------------------------------------------------------------------------------------------------------


def test_a_shape_survives_its_hugging_face_spelling() -> None:
    config = dataclasses.replace(shape(), rope_theta=50_000.0, norm_eps=1e-5)
    assert ModelConfig.from_huggingface(config.to_huggingface(), "x") == config
    newer = {k: v for k, v in config.to_huggingface().items() if k != "rope_theta"}
    older = {k: v for k, v in config.to_huggingface().items() if k != "rope_parameters"}
    assert ModelConfig.from_huggingface(newer, "x") == ModelConfig.from_huggingface(older, "x") == config


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llama"},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"use_sliding_window": True},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": None},
        {"rope_parameters": None, "rope_theta": 0},
        {"rope_parameters": None, "rope_theta": "many"},
        {"hidden_act": "gelu"},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": None},
        {"hidden_size": 10**8},
        {"rms_norm_eps": None},
        {"vocab_size": 9_999_999, "hidden_size": 9_999_999},
    ],
)
def test_L4_a_foreign_or_damaged_configuration_is_refused_and_never_half_understood(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"^runs/a/config\.json: "):
        ModelConfig.from_huggingface({**shape().to_huggingface(), **changes}, "runs/a/config.json")


@pytest.mark.parametrize("data", [None, [], "qwen3", {}, {"model_type": "qwen3", "tie_word_embeddings": True}])
def test_anything_but_a_whole_configuration_is_refused(data: Any) -> None:
    with pytest.raises(CheckpointError):
        ModelConfig.from_huggingface(data, "x")


@given(
    st.dictionaries(
        st.sampled_from(sorted(shape().to_huggingface())), st.none() | st.integers() | st.floats() | st.text() | st.lists(st.none())
    )
)
def test_L4_no_configuration_ends_in_anything_but_a_shape_or_a_sentence(changes: dict[str, Any]) -> None:
    with contextlib.suppress(CheckpointError):
        assert isinstance(ModelConfig.from_huggingface({**shape().to_huggingface(), **changes}, "x"), ModelConfig)


# --- training settings -------------------------------------------------------------------------------------------------------------

ABSURD: list[tuple[str, Any]] = [
    ("max_steps", 0), ("max_steps", 10**13), ("until_step", 0), ("more_steps", -1), ("resume_from_step", -1), ("batch_tokens", 0),
    ("micro_batch", 0), ("context_len", 7), ("warmup_steps", -1), ("cooldown_steps", -1), ("save_every", 0), ("eval_every", 0),
    ("vocab_size", 0), ("seed", -1), ("threads", 0), ("lr", 0.0), ("lr", -1.0), ("lr", 1.5), ("lr", math.nan), ("muon_lr", math.inf),
    ("weight_decay", -0.1), ("grad_clip", 0.0), ("dropout", 0.96), ("dropout", -0.1), ("milestones", "1,two"), ("milestones", ""),
    ("milestones", "-1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ABSURD)
def test_an_absurd_training_setting_is_refused_by_the_name_of_its_flag(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"--{name}") as caught:
        TrainConfig(**{name: value})
    assert caught.value.exit_code == 2 and caught.value.hint


def test_zero_is_a_real_value_where_it_means_something() -> None:
    config = TrainConfig(seed=0, warmup_steps=0, cooldown_steps=0, weight_decay=0.0, dropout=0.0, resume_from_step=0)
    assert (config.cooldown_steps, config.resume_from_step, config.weight_decay) == (0, 0, 0.0)


def test_two_places_to_pause_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--until_step and --more_steps"):
        TrainConfig(until_step=5, more_steps=5)


def test_milestones_are_the_series_of_the_design_unless_named() -> None:
    assert [step for step in range(3_001) if is_milestone(step, None)] == [*range(0, 1_001, 100), 1_500, 2_000, 2_500, 3_000]
    assert parse_milestones("auto") is None and parse_milestones("none") == frozenset()
    assert parse_milestones("0, 7,100") == {0, 7, 100}
    assert [step for step in range(200) if is_milestone(step, frozenset({7, 100}))] == [7, 100]
    assert not any(is_milestone(step, frozenset()) for step in range(200))


def test_the_default_rate_grows_with_the_root_of_the_batch_up_to_a_limit() -> None:
    assert [default_lr(tokens) for tokens in (1_024, 4_096, 16_384, 25_600, 98_304)] == [0.002828, 0.005657, 1e-2, 1e-2, 1e-2]


def test_a_wider_model_starts_smaller_so_that_no_token_expects_itself() -> None:
    assert [self_logit_std(width) for width in (64, 200, 400, 800)] == [0.02, 0.02, 0.01, 0.005]


def test_given_flags_are_those_spelled_out_in_either_spelling() -> None:
    argv = ["--max-steps", "5", "--lr=0.1", "--no-finish", "--dataset_path", "-x", "word", "--seed=0"]
    assert given_flags(argv) == {"max_steps", "lr", "finish", "dataset_path", "seed"}
    assert changed_fields(TrainConfig(seed=0, max_steps=3, finish=True)) == {"max_steps", "finish"}


# --- sampling settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0), ("top_k", -1), ("seed", -1), ("temperature", -0.1), ("temperature", math.nan), ("top_p", 1.01), ("top_p", -0.1),
        ("min_p", 2.0), ("repetition_penalty", 0.0), ("repetition_penalty", math.inf),
        ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("stop", ("a", "")),
    ],
)  # fmt: skip
def test_an_absurd_sampling_setting_is_refused_by_the_name_of_its_flag(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"--{name}"):
        SampleConfig(**{name: value})


def test_the_ends_of_every_range_are_allowed() -> None:
    SampleConfig(max_tokens=1, temperature=0.0, top_k=0, top_p=0.0, min_p=0.0, repetition_penalty=0.01, seed=0)
    at_the_edges = {"presence_penalty": -2.0, "frequency_penalty": 2.0}
    SampleConfig(temperature=100.0, top_p=1.0, min_p=1.0, repetition_penalty=100.0, seed=10**12, **at_the_edges)
