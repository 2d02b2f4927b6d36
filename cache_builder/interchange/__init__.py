"""Other programs' targets as a cache, and a cache as plain Parquet; docs/interchange.md says what is lost.

DistillKit's Parquet ─▶ distillkit.py ─┐
axolotl's JSON lines ─▶ axolotl.py ────┴─▶ SourceRow ─▶ rows.py ─▶ Targets ─▶ importing.py ─▶ a cache of version 2
a cache ─▶ exporting.py ─▶ one Parquet file, a row per sequence
"""
