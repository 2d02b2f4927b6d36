"""Examples to token ids and masks: sources, chat templates, the tokenizer, the tokenised corpus, padded batches.

Imports the root files, and `transformers` for tokenizers.
"""
