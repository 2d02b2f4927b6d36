"""Fine-tune, distil from a cache, evaluate and report; the `footsteps` command is `cli.py`."""
