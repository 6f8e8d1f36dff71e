"""llama.cpp's names for a decoder's tensors, and its order of rows, turned into Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from components.pretrained.gguf import GGUFFile

from .architecture import ROPE_FACTORS
from .config import Architecture

PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}


class HFNames:
    """A GGUF under Hugging Face's names (:class:`~components.pretrained.tensors.TensorSource`).

    llama.cpp keeps the rows of a Llama's q and k in the order of neighbouring pairs; here they go back to halves.
    """

    def __init__(self, file: GGUFFile, arch: Architecture) -> None:
        self.file, self.path, self.arch = file, file.path, arch
        self._names = {self._name(name): name for name in file.shapes if name != ROPE_FACTORS}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        shapes = self.file.shapes
        return {name: shapes[stored] for name, stored in self._names.items()}

    def read(self, name: str, out: Tensor) -> None:
        tensor = self.file.get(self._names[name])
        if self.arch.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = tensor.unflatten(0, (-1, self.arch.head_dim // 2, 2)).transpose(1, 2).reshape(tensor.shape)
        out.copy_(tensor)

    def _name(self, stored: str) -> str:
        if stored in WHOLE:
            return WHOLE[stored]
        start, _, rest = stored.partition(".")
        number, _, rest = rest.partition(".")
        part, _, suffix = rest.rpartition(".")
        if start != "blk" or part not in PARTS:
            return stored  # nothing asks for it, so that it is reported
        return f"layers.{number}.{PARTS[part]}.{suffix}"
