"""What this machine has left, and what this process takes: memory, its peak, disk."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files with the limit and the use of the container, by version of control groups."""


def resident_bytes() -> int:
    """Return the memory that this process holds now; 0 where the system does not say."""
    return _status("VmRSS") or _peak_by_usage()


def peak_bytes() -> int:
    """Return the most memory that this process held since its start, or since `reset_peak`."""
    return _status("VmHWM") or _peak_by_usage()


def reset_peak() -> bool:
    """Let `peak_bytes` begin anew; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def trim() -> None:
    """Give freed memory back to the system, so that what is resident is what is in use."""
    gc.collect()
    if sys.platform.startswith("linux"):
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; musl has none and keeps little
        if give_back is not None:
            give_back(0)


def available_bytes(device: torch.device | None = None) -> int:
    """Return the memory that this process could still take: free on the machine, and within its container."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    left = [_meminfo("MemAvailable")]
    for limit, use in CGROUPS:
        try:
            left.append(int(Path(limit).read_text()) - int(Path(use).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
    return max(min(left), 0)


def free_disk_bytes(path: Path) -> int:
    """Return the room on the disk of a path, which need not exist yet."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def _status(name: str) -> int:
    return _kilobytes(Path("/proc/self/status"), name)


def _meminfo(name: str) -> int:
    return _kilobytes(Path("/proc/meminfo"), name) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _kilobytes(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _peak_by_usage() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
