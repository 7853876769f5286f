"""Tokenizer files of a Hugging Face model folder, made from a SentencePiece model.

`tokenizer.json` restates the model for the `tokenizers` library. It merges pairs in the order of a list, where SentencePiece merges any two
neighbours whose concatenation is a piece, best score first; so the list holds every way to make each piece, ordered by the piece's score.
Encoding adds bos, as for a document. One difference: there, markers such as `<|im_start|>` in a text become control ids, here never.
"""

from __future__ import annotations

import json
from typing import Any

from positron_mini.files import json_text
from positron_mini.text.tokenizer.model_file import BOS, EOS, FIRST_NORMAL, IM_END, IM_START, PAD, SPACE, SPECIAL_PIECES, UNK, splits
from positron_mini.text.tokenizer.spm import Tokenizer


def huggingface_files(tokenizer: Tokenizer, *, context_len: int, chat_template: str | None) -> dict[str, bytes]:
    """Tokenizer files of the folder by name; equal arguments give equal bytes. Without a template (base models) no chat file is made."""
    contents = {
        "tokenizer.model": tokenizer.model_bytes,
        "tokenizer.json": _compact_json(_tokenizer_json(tokenizer)),
        "tokenizer_config.json": json_text(_tokenizer_config(context_len, chat_template)).encode(),
    }
    if chat_template is not None:
        contents["chat_template.jinja"] = chat_template.encode()
    return contents


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    bos = SPECIAL_PIECES[BOS]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": text, **_PLAIN, "special": True} for index, text in enumerate(SPECIAL_PIECES)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": _model(tokenizer),
    }


_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    texts = [piece.text for piece in tokenizer.pieces()]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": SPECIAL_PIECES[UNK],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {text: index for index, text in enumerate(texts)},
        "merges": _merges(texts[FIRST_NORMAL:]),
    }


def _merges(texts: list[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, in SentencePiece's merging order: by the id of the result."""
    known = set(texts)
    return [pair for text in texts for pair in splits(text, known)]


def _tokenizer_config(context_len: int, chat_template: str | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": SPECIAL_PIECES[BOS],
        "eos_token": SPECIAL_PIECES[EOS],
        "unk_token": SPECIAL_PIECES[UNK],
        "pad_token": SPECIAL_PIECES[PAD],
        "additional_special_tokens": [IM_START, IM_END],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_len,
        "padding_side": "left",  # rows of a batch end together, so that generation continues at one position
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    return config


def _compact_json(value: dict[str, Any]) -> bytes:
    # Merges and vocabulary are tens of thousands of entries: indented, the file would be four times as large.
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
