"""What were the numbers of a benchmark measured on? The line that every one of them prints."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

__all__ = ["machine"]


def machine(threads: int | None = None, device: torch.device | None = None) -> str:
    """Processor, cores, threads (or the accelerator), load and versions.

    Args:
        threads: that are used; torch's own number by default.
        device: on which the work is done; the processor by default.
    """
    model, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), model)
    used = f"{threads or torch.get_num_threads()} thread(s)"
    where = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else used
    # Not every platform knows its load.
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model}, {os.cpu_count()} cores, {where}{load}; {versions}"
