"""The dtype that a PyTorch model computes in on this machine.

A CPU without bf16 instructions emulates bf16. The prefill of SmolLM2-135M then takes six times as long as in fp32
(73 against 460 tokens a second on 2 cores of an AMD EPYC with AVX2, 2026-11-25).
"""

from typing import Any

from steps.safety.memory import available_memory

NATIVE = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""By dtype: the CPU capabilities that compute in it, as `torch.cpu.get_capabilities` names them. One is enough."""


def use_fast_dtype(model: Any) -> None:  # noqa: ANN401  transformers has no types
    """Convert *model* to fp32 if it is on a CPU that emulates its dtype, and memory allows.

    fp32 holds every bf16 and fp16 value, so the weights stay what they are; only rounding between them changes.
    """
    import torch

    native = NATIVE.get(dtype_name(model), ())
    capabilities = torch.cpu.get_capabilities()
    if not native or model.device.type != "cpu" or any(capabilities.get(name) for name in native):
        return
    if sum(4 * weight.numel() for weight in model.parameters()) < available_memory():
        model.float()


def dtype_name(model: Any) -> str:  # noqa: ANN401  see above
    """Return the dtype in which *model* computes, such as "bfloat16"."""
    return str(model.dtype).removeprefix("torch.")


def describe_dtype(model: Any) -> str:  # noqa: ANN401  see above
    """Return the dtype in which *model* computes, and the checkpoint's dtype if it differs."""
    stored = str(model.config.dtype).removeprefix("torch.")
    computed = dtype_name(model)
    return computed if stored in (computed, "None") else f"{computed} (checkpoint: {stored})"
