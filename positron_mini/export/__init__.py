"""Taking a model elsewhere: a GGUF file, a Hugging Face folder, the model card."""
