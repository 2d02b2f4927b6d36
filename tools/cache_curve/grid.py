"""The targets that are compared: today's default, the candidates, the peers restated plainly."""

from tools.cache_curve.stored import Target

PEERS = [
    Target(128, peer="DistillKit top-128, symmetric_uniform", peer_bytes=328),
    Target(128, "none", peer="DistillKit top-128, zero", peer_bytes=328),
    Target(50, peer="DistillKit top-50, symmetric_uniform", peer_bytes=121),
    Target(50, "none", peer="DistillKit top-50, zero", peer_bytes=121),
    Target(128, top_p=0.999, peer="Megatron top-p .999 of 128, ghost token", peer_bytes=219),
    Target(0, "samples", 12, peer="RS-KD, 12 draws", peer_bytes=36),
    Target(0, "samples", 25, peer="RS-KD, 25 draws", peer_bytes=75),
    Target(0, "samples", 50, peer="RS-KD, 50 draws", peer_bytes=150),
    Target(16, "none", peer="top-16, renormalised", peer_bytes=58),
]
"""`symmetric_uniform` and the ghost token are both the tail as one outcome on both sides: the bucket. RS-KD at its
authors' 36 and 150 bytes, and at what the default costs."""

YARDSTICKS = [Target(16, "samples", 8), Target(16)]
"""Today's default, and the other one of which the better is the bar."""

CANDIDATES = [
    Target(16, "adaptive", 8),
    Target(16, blocks=16),
    Target(16, blocks=32),
    Target(12, blocks=32),
    Target(12, blocks=32, block_steps=4),
    Target(12, "adaptive", 4, 16),
    Target(12, "adaptive", 4, 24, block_steps=4),
    Target(12, "adaptive", 4, 24, shared=8, block_steps=4),
    Target(12, "pooled", 4, 24, block_steps=2),
    Target(12, "pooled", 6, 16, block_steps=2),
    Target(8, "adaptive", 8, 24, block_steps=4),
    Target(8, "pooled", 8, 24, block_steps=2),
    Target(16, blocks=16, edges="mass", block_steps=2),
    Target(16, blocks=32, edges="mass", block_steps=2),
]

OTHERS = [
    Target(24),
    Target(32),
    Target(2, "samples", 16),
    Target(2, "adaptive", 16),
    Target(16, "mixed", 8, weight=0.25),
    Target(16, "mixed", 8, weight=0.5),
    Target(16, "adaptive", 8, shared=8),
    *[Target(16, blocks=count) for count in (4, 8, 64)],
    *[Target(k, blocks=count) for k in (8, 12, 24) for count in (16, 64)],
    Target(8, blocks=32),
    Target(24, blocks=8),
    *[Target(16, blocks=count, edges=edges) for count in (16, 32) for edges in ("equal", "mass", "frequency")],
    *[Target(12, blocks=32, block_steps=steps) for steps in (2, 1)],
    Target(12, "mixed", 4, 24, weight=0.25),
    Target(12, "samples", 12),
]

AT_75_BYTES = [
    Target(16, blocks=32, block_steps=2),
    Target(16, blocks=48, edges="mass", block_steps=2),
    Target(20, blocks=32, edges="mass", block_steps=2),
]
"""What was tried last of blocks alone, around the best of the above."""

DECISION = [
    *YARDSTICKS,
    Target(16, blocks=32, block_steps=2),
    Target(12, "pooled", 8, 32, block_steps=2),
    Target(12, "pooled", 8, 24, block_steps=2),
    Target(12, "pooled", 8, 32, steps_per_nat=64, block_steps=2),
    Target(12, "pooled", 6, 32, block_steps=2),
    Target(10, "pooled", 8, 32, block_steps=2),
]
"""What the default is chosen among."""

GRIDS = {
    "decision": DECISION,
    "last": AT_75_BYTES,
    "short": [*YARDSTICKS, *CANDIDATES],
    "peers": PEERS,
    "others": OTHERS,
    "all": [*YARDSTICKS, *CANDIDATES, *AT_75_BYTES, *OTHERS, *PEERS, *DECISION[3:]],
}
