"""Text to ids and back: the SentencePiece tokenizer, its training, and its Hugging Face files."""

from positron_mini.text.tokenizer.huggingface import huggingface_files
from positron_mini.text.tokenizer.model_file import BOS, EOS, IM_END, IM_START, PAD, SPACE, UNK, Piece
from positron_mini.text.tokenizer.spm import IncrementalDecoder, Tokenizer, train_tokenizer
from positron_mini.text.tokenizer.words import WordEncoder

__all__ = [
    "BOS",
    "EOS",
    "IM_END",
    "IM_START",
    "PAD",
    "SPACE",
    "UNK",
    "IncrementalDecoder",
    "Piece",
    "Tokenizer",
    "WordEncoder",
    "huggingface_files",
    "train_tokenizer",
]
