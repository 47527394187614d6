"""What this machine's CPU computes quickly."""

import torch

INSTRUCTIONS = {
    "bfloat16": ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""For dtypes that not every CPU has: any of these does, by the names of `torch.cpu.get_capabilities`."""


def is_slow(dtype: str) -> bool:
    """Whether the CPU has no instructions for that dtype, so that each operation goes through others."""
    has = torch.cpu.get_capabilities()
    return dtype in INSTRUCTIONS and not any(has.get(name) for name in INSTRUCTIONS[dtype])
