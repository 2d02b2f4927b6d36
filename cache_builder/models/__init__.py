"""Models by folder or hub id: loading, placement, adapters, tensor parallelism, the head as a matmul.

Imports `data` for the tokenizer's size, and the root files.
"""
