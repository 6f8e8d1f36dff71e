"""A small GPT for training from scratch, with one dial: ``depth``.

Notable choices, after nanochat:
- width = aspect × depth, so one number scales the whole model
- RMSNorm without parameters, also right after the embedding and on queries and keys
- rotary positions; no position embedding, no biases
- ReLU² in the MLP
- output projections start at zero, so every block starts as the identity
- logits are softly capped, computed in float32 and only for the rows that are asked for

The norm after the embedding has a second use here: vectors that come from pictures enter at the same scale
as those of tokens, whatever the projector makes of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from components.attention import Attend, KVCache, attends, check_length, pick
from components.compiled import add_product
from components.cross_entropy import linear_cross_entropy
from components.precision import autocast_dtype
from components.recompute import through
from ghostvis_plugins import ConfigError

from .config import GPT as Config
from .functional import relu_squared, rms_norm, rotate, rotation

EMBEDDING_STD = 1.0


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream."""

    compiles = ("before", "after")

    def __init__(self, config: Config, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, config.head_dim
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(heads * config.head_dim, dim, bias=False)
        self.up = nn.Linear(dim, config.ffn_mult * dim, bias=False)
        self.down = nn.Linear(config.ffn_mult * dim, dim, bias=False)

    def forward(self, x: Tensor, turns: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """``x`` ``[T, D]`` → ``[T, D]``, or ``[S, D]`` when only some rows are wanted."""
        attended = attend(*self.before(x, turns)).flatten(1)
        if rows is not None:
            x, attended = pick(x, rows), pick(attended, rows)
        return self.after(x, attended)

    def before(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` ``[T, D]`` → queries ``[T, H, hd]``, keys and values ``[T, Hkv, hd]``, turned to their positions."""
        if torch.compiler.is_compiling() and type(self.qkv) is nn.Linear:
            return self._before_compiled(rms_norm(x), turns)
        qkv = self.qkv(rms_norm(x)).unflatten(-1, (-1, self.head_dim))
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(rms_norm(qk), turns).split([self.heads, self.kv_heads], dim=1)
        return q, k, v

    def _before_compiled(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of normalised ``x``, in a form that the compiler makes good kernels of.

        Of each head's queries and keys the first of all pairs come first, then the second: their products stay the
        same, and halves are turned in whole vectors where neighbours are not. Queries, keys and values are products of
        their own, so that nobody has to put their gradients together.
        """
        heads = self.qkv.weight.unflatten(0, (-1, self.head_dim))
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads])
        q, k = (part.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2) for part in (q, k))
        q, k, v = (nn.functional.linear(x, part.flatten(0, 1)).unflatten(-1, (-1, self.head_dim)) for part in (q, k, v))
        return rotate(rms_norm(q), turns, apart=True), rotate(rms_norm(k), turns, apart=True), v

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = add_product(x, self.out, attended)
        return x + self.down(relu_squared(self.up(rms_norm(x))))


class GPT(nn.Module):
    """The ``gpt`` backbone (:class:`ghostvis_plugins.protocols.Backbone`)."""

    activation_checkpointing = False

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.max_positions, self.n_layers = vocab_size, config.max_positions, config.depth
        self.dim = config.aspect * config.depth
        if self.dim % config.head_dim:
            raise ConfigError(
                f"backbone.head_dim {config.head_dim} does not divide the width {self.dim} "
                f"(aspect {config.aspect} × depth {config.depth})"
            )
        self.heads = self.dim // config.head_dim
        self.kv_heads = config.kv_heads or self.heads
        if self.heads % self.kv_heads:
            raise ConfigError(f"backbone.kv_heads {self.kv_heads} does not divide the {self.heads} heads")
        self.embedding = nn.Embedding(vocab_size, self.dim)
        self.blocks = nn.ModuleList(Block(config, self.dim, self.heads, self.kv_heads) for _ in range(config.depth))
        self.head = None if config.tie else nn.Linear(self.dim, vocab_size, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Random weights; the one place where their scale is decided.

        Input projections: uniform with standard deviation 1/√fan_in, so activations keep their size. Output
        projections: zero. The embedding's scale is lost in the norm that follows, but it decides how fast Adam turns
        the tokens: from 0.02 they turn so fast that questions of yes or no are not learnt (docs/log.md). The head
        starts near zero: the first loss is ln(vocabulary).
        """
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear in (block.qkv, block.up):
                bound = math.sqrt(3 / linear.in_features)
                nn.init.uniform_(linear.weight, -bound, bound)
            for linear in (block.out, block.down):
                nn.init.zeros_(linear.weight)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.001)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids ``[T]`` → vectors ``[T, D]``."""
        return self.embedding(ids)

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
        turns = rotation(positions, self.config.head_dim, self.config.rope_base)
        x = rms_norm(x.to(autocast_dtype(x)))
        for layer, attend in enumerate(attends(cu_seqlens, cache, x.device, self.n_layers)):
            last = layer == self.n_layers - 1
            x = through(
                self.blocks[layer], x, turns, attend, rows if last else None, again=self.activation_checkpointing
            )
        if cache is not None:
            cache.lengths = cache.lengths + cu_seqlens.diff()
        return rms_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[S, D]`` → float32 logits ``[S, vocab_size]`` within ± softcap."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        cap = self.config.softcap
        return cap * torch.tanh(nn.functional.linear(hidden.to(weight.dtype), weight).float() / cap)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed negative log-likelihood of ``targets`` ``[S]``, without keeping their logits."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return linear_cross_entropy(hidden, weight, targets, self.config.softcap)

    def new_cache(self, rows: int, length: int) -> KVCache:
        """An empty cache for ``rows`` documents of at most ``length`` tokens."""
        weight = self.embedding.weight
        return KVCache.empty(
            self.n_layers, rows, length, self.kv_heads, self.config.head_dim, weight.dtype, weight.device
        )


def build(config: Config, *, vocab_size: int) -> GPT:
    """The ``gpt`` component."""
    return GPT(config, vocab_size)
