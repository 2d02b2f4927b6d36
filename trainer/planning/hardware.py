"""What a plan assumes of the machines, every field an input with a default; none of it was measured by this project."""

from dataclasses import dataclass, fields

from cache_builder.errors import ConfigError
from trainer.planning.units import parse_number

GPUS = {
    "a100": (312e12, 80e9),
    "h100": (989e12, 80e9),
    "h200": (989e12, 141e9),
    "l40s": (362e12, 48e9),
    "rtx4090": (165e12, 24e9),
}
"""Peak of dense bfloat16 matmuls, FLOP/s, and memory, bytes, by the vendors' data sheets."""


@dataclass(frozen=True)
class Hardware:
    """Machines, prices and what is reached of a peak. The unit and meaning stand beside each field."""

    gpus: int = 1
    """GPUs that work at the same time, for building and for training."""
    gpus_per_node: int = 8
    """GPUs of one machine; those of a machine share its page cache."""
    gpu_flops: float = GPUS["h100"][0]
    """FLOP/s of one GPU at its peak."""
    gpu_memory: float = GPUS["h100"][1]
    """Bytes of one GPU."""
    gpu_price: float = 2.5
    """$ per GPU and hour."""
    mfu_forward: float = 0.4
    """Share of the peak that a forward pass reaches."""
    mfu_train: float = 0.35
    """Share of the peak that a training step reaches."""
    bandwidth: float = 1e9
    """Bytes per second between all machines and the store, each way."""
    loader_workers: int = 0
    """Processes per GPU that read targets ahead; with 0 the training process reads by itself, and waits."""
    storage_price: float = 0.023
    """$ per GB (10⁹ bytes) and month."""
    storage_months: float = 1.0
    """Months that the cache is kept."""

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)


HARDWARE_FIELDS = tuple(field.name for field in fields(Hardware))
WHOLE = ("gpus", "gpus_per_node", "loader_workers")
MAY_BE_ZERO = ("loader_workers", "gpu_price", "storage_price", "storage_months")
SHARES = ("mfu_forward", "mfu_train")


def parse_field(name: str, text: str) -> float:
    """Read the value of a field, whole where it counts things.

    Raises:
        ConfigError: it is no number, or one that the field cannot have.
    """
    option = f"--{name.replace('_', '-')}"
    try:
        value = parse_number(text, or_zero=name in MAY_BE_ZERO)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None
    if name in WHOLE and value != int(value):
        raise ConfigError(f"{option} {text}: expected a whole number")
    if name in SHARES and value > 1:
        raise ConfigError(f"{option} {text}: a share of the peak is at most 1")
    return int(value) if name in WHOLE else value
