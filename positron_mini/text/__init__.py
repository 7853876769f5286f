"""From a file to token ids: reading, cleaning and splitting texts, the tokenizer, the prepared token files, the chat format."""
