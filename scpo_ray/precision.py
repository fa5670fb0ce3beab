"""What a `precision` setting means where it is used. Apart from models: whoever only asks needs no model library."""

import torch


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """What a `precision` setting means on this device: auto is bfloat16 where the hardware multiplies it natively."""
    return precision == "bfloat16" or (precision == "auto" and native_bfloat16(device))


def resolved_precision(precision: str, *, on_gpu: bool) -> str:
    """What auto means for scorers, decided once where the job starts: the cache's key must not depend on the worker."""
    if precision != "auto":
        return precision
    return "bfloat16" if on_gpu or native_bfloat16(torch.device("cpu")) else "float32"


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively, so that it is worth using."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
