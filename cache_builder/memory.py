"""The most memory that a stretch of work has needed: of the GPUs where there are any, else of the process."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def reset_peak_memory() -> None:
    """Begin a new stretch. Where the system cannot forget a process's peak, it is that of the process's whole life."""
    if (torch := _torch()) is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # not Linux, or not allowed in this container
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Return the peak since `reset_peak_memory`, MiB; of several GPUs that this process used, their peaks' sum."""
    device_mib = _device_mib()
    return _resident_mib() if device_mib is None else device_mib


def peaks_mib() -> dict[str, float]:
    """Return the peak of the process's resident memory, and of its GPUs' where it has any, by the log's names."""
    device_mib = _device_mib()
    resident = {"peak_rss_mib": _resident_mib()}
    return resident if device_mib is None else {**resident, "peak_device_mib": device_mib}


def _device_mib() -> float | None:
    if (torch := _torch()) is None or not torch.cuda.is_available():
        return None
    return float(sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())) / 2**20)


def _resident_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    # Imported here, because Windows has no such module, and reading a cache must not need it.
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _torch() -> Any:
    """Return torch where this process has imported it; else it has used no GPU through it."""
    return sys.modules.get("torch")
