"""What the host tells of itself: `/system_stats`, `/features`."""

import platform
import sys
from typing import Any

import psutil  # type: ignore[import-untyped]

from latentwire import Host, __version__


def features(max_upload: int) -> dict[str, Any]:
    """What this host can do, as front ends ask."""
    return {"supports_preview_metadata": True, "max_upload_size": max_upload}


def system_stats(host: Host) -> dict[str, Any]:
    """The machine, and the device that pictures are made on."""
    import torch  # the host has it by now; whoever only looks for plugins shall not wait for it

    memory = psutil.virtual_memory()
    total, free, reserved, unused = memory.total, memory.available, memory.total, memory.available
    name = platform.processor() or platform.machine()
    if host.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(host.device)
        reserved = torch.cuda.memory_reserved(host.device)
        unused = reserved - torch.cuda.memory_allocated(host.device)
        name = torch.cuda.get_device_name(host.device)
    device = {
        "name": f"{host.device} {name}",
        "type": host.device.type,
        "index": host.device.index,
        "vram_total": total,
        "vram_free": free,
        "torch_vram_total": reserved,
        "torch_vram_free": unused,
    }
    return {
        "system": {
            "os": sys.platform,
            "ram_total": memory.total,
            "ram_free": memory.available,
            "comfyui_version": f"latentwire {__version__}",
            "python_version": platform.python_version(),
            "pytorch_version": torch.__version__,
            "embedded_python": False,
            "argv": [],
        },
        "devices": [device],
    }
