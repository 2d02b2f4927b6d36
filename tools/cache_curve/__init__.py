"""What a stored target costs and what it keeps of the full gradient, on pairs of a real teacher and a student.

pairs.py    models, texts ─▶ hidden states of teacher and students, once, on disk
stored.py   p ─▶ what a record keeps of it ─▶ p̂, the target that a student is trained towards
angles.py   Σ (q − p) hᵀ against Σ (q − p̂) hᵀ, over groups of positions; and (q − p) W
grid.py     the targets that are compared
measure.py  pairs × targets ─▶ degrees, bytes on disk ─▶ a table, results/cache_curve.csv
"""
