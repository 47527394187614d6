"""Memory that a forward frees: kept for the next one, and given back when asked."""

import json
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import json, resource, sys, threading
import torch
from diffusers import UNet2DConditionModel
from latentwire.core.memory import give_back, keep_freed_memory
from latentwire.core.pace import made_up_inputs
from latentwire.core.settings import EMBEDDED_MODEL

def resident():  # MiB
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

@torch.inference_mode()
def engine():
    inputs = made_up_inputs(unet, 32, torch.device("cpu"))
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        unet(**inputs)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    kept = resident()
    give_back()
    print(json.dumps({"faults": faults, "given_back": kept - resident()}))

if sys.argv[1] == "keep":
    keep_freed_memory()
unet = UNet2DConditionModel.from_pretrained(EMBEDDED_MODEL / "unet").eval()
thread = threading.Thread(target=engine)
thread.start()
thread.join()
"""


def seen(*arguments: str) -> dict[str, Any]:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.slow
def test_a_forward_gets_the_pages_of_the_one_before_and_they_are_given_back_when_asked() -> None:
    usual, keeping = seen("as usual"), seen("keep")
    assert usual["faults"] > 2000  # pages that a forward of 32 rows waits for
    assert keeping["faults"] < usual["faults"] / 5
    assert keeping["given_back"] > 40  # MiB
