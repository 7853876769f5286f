"""From a file to token ids: read, clean and split texts; the tokenizer, the prepared token files, the chat format."""
