"""Tensors that are no network of their own, by their names: adapters (LoRA and alike) and quantised weights."""

import re
from collections.abc import Iterable

IN_FLOATS = "the file in bfloat16, float16 or float32 that it was made of"
ADAPTER = (
    "a LoRA or another adapter, which changes the weights of another network: in diffusers load that network, then "
    "load_lora_weights(...), fuse_lora() and save_pretrained(...), and import what was saved"
)
# As kohya-ss, PEFT, diffusers and LyCORIS name them.
_ADAPTER = re.compile(r"(^|[._])(lora|hada|lokr|dora|oft)[._]")
# What quantised weights are multiplied by, or looked up in: of ComfyUI, bitsandbytes, GPTQ, AWQ, quanto, nunchaku.
_SCALES = re.compile(
    r"(^|[._])(scaled_fp8|scale_weight|scale_input|weight_scale(_inv|_2)?|input_scale|comfy_quant|"
    r"absmax|quant_map|quant_state|SCB|weight_format|qweight|qzeros|w?scales|wzeros|g_idx|_scale)($|\.)"
)


def foreign(names: Iterable[str]) -> str | None:
    """Says what tensors of these names are, and what to do; None where they are no adapter and not quantised."""
    names = list(names)
    if found := [name for name in names if _ADAPTER.search(name)]:
        return f"{ADAPTER} ({len(found)} tensors such as {found[0]})"
    if found := [name for name in names if _SCALES.search(name)]:
        return (
            f"quantised weights ({len(found)} tensors such as {found[0]} are scales of others), which are not read: "
            f"take {IN_FLOATS}"
        )
    return None
