"""Models by folder or hub id: loading, placement, adapters, tensor parallelism, the head as a matmul.

Imports `data` for where tokenizers and models lie, and the root files.
"""
