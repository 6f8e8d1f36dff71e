"""One dial for pretraining: from a depth to the shape of the model, batch, learning rates, decay and horizon.

The recipe is nanochat's (https://github.com/karpathy/nanochat, ``scripts/base_train.py`` of 2026-07), measured there at
depth 12 and carried to other depths N:

- width 64·N; heads of 128 where that divides the width, else of 64
- tokens D = ratio · P, where P are the weights that scale: 12·N·width² in the blocks and width·vocabulary in the head
- batch B = 2¹⁹ · (D/D₁₂)^0.383 (Bergsma et al. 2025, arXiv:2505.13738), as the nearest power of two
- every learning rate · √(B/2¹⁹); those of AdamW also · √(768/width)
- weight decay · √(B/2¹⁹) · D₁₂/D, so that B/(lr · decay · D) stays what it is at depth 12 (arXiv:2405.13698)

**Muon's learning rate.** With O for the orthogonalised momentum of a matrix of r rows and c columns (c is its fan-in),
nanochat moves it by η·√max(1, r/c)·O, and :mod:`components.optimizers.muon` by lr·0.2·√max(r, c)·O. They are equal for

    r ≤ c:   lr = η / (0.2·√c)
    r > c:   lr = η·√(r/c) / (0.2·√r) = η / (0.2·√c)

so lr = 5η/√fan-in for every shape: 5·0.02/√768 = 0.00361 at depth 12, and half of it for the MLP's ``down``, whose
fan-in is four times the width.

**Its decay.** nanochat shrinks a square matrix by η·λ a step, ours by lr·decay: decay = λ·0.2·√width. But nanochat
shrinks only the entries that the update itself makes smaller, which is about every second one, and lets λ go to zero
along a cosine, whose mean is a half; ours decays all entries to the end. A quarter takes away about as much in all.
That quarter is reasoned and not measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

ASPECT, FFN_MULT = 64, 4
REFERENCE_DEPTH, REFERENCE_BATCH, REFERENCE_WIDTH = 12, 2**19, 768
BATCH_EXPONENT = 0.383
RATIO = 12.0
VOCABULARY = 32_768
"""Token ids that are assumed where no tokenizer is known yet: nanochat's."""

EMBEDDING_LR, HEAD_LR, MATRIX_LR, DECAY = 0.3, 0.008, 0.02, 0.28
MUON_RMS = 0.2  # components.optimizers.muon scales its updates by this; a test holds the two together
DECAYED = 0.25


@dataclass(frozen=True, slots=True)
class Horizon:
    """How long a model of some depth is trained, and in which batches."""

    parameters: int  # those that scale: blocks and head, not the embedding
    tokens: int
    batch_tokens: int

    @classmethod
    def of(cls, depth: int, vocab_size: int = VOCABULARY, ratio: float = RATIO) -> Horizon:
        """``ratio`` tokens for each weight that scales."""
        parameters, reference = scaling_parameters(depth, vocab_size), scaling_parameters(REFERENCE_DEPTH, vocab_size)
        batch = REFERENCE_BATCH * (parameters / reference) ** BATCH_EXPONENT
        return cls(parameters, int(ratio * parameters), 2 ** round(math.log2(batch)))


def scaling_parameters(depth: int, vocab_size: int) -> int:
    """Weights of the blocks (four square matrices of attention, two of the MLP) and of the head."""
    width = ASPECT * depth
    return depth * (4 + 2 * FFN_MULT) * width**2 + width * vocab_size


def values_of_depth(depth: int, vocab_size: int = VOCABULARY, ratio: float = RATIO) -> dict[str, Any]:
    """Everything that follows from the depth, in the shape of a recipe."""
    horizon, width = Horizon.of(depth, vocab_size, ratio), ASPECT * depth
    reference = scaling_parameters(REFERENCE_DEPTH, vocab_size)
    by_batch = math.sqrt(horizon.batch_tokens / REFERENCE_BATCH)
    adamw, muon = by_batch * math.sqrt(REFERENCE_WIDTH / width), by_batch * MATRIX_LR / MUON_RMS
    decay = DECAY * by_batch * reference / horizon.parameters
    return {
        "stage": {
            "steps": max(1, horizon.tokens // horizon.batch_tokens),
            "batch_tokens": horizon.batch_tokens,
            "train": {
                "backbone.embedding": _short(EMBEDDING_LR * adamw),
                "backbone.head": _short(HEAD_LR * adamw),
                "backbone.blocks": _short(muon / math.sqrt(width)),
                "backbone.blocks.*.down": _short(muon / math.sqrt(FFN_MULT * width)),
            },
            "schedule": "wsd",
            "warmup": 40,
            "warmdown": 0.65,
            "final_lr": 0.05,
            "clip": 0,  # Muon's updates have one size whatever the gradient's
        },
        "backbone": {
            "name": "gpt",
            "depth": depth,
            "aspect": ASPECT,
            "head_dim": 128 if width % 128 == 0 else 64,
            "ffn_mult": FFN_MULT,
        },
        "optimizer": {
            "name": "muon",
            "weight_decay": _short(decay * MUON_RMS * math.sqrt(width) * DECAYED),
            "adamw": {"beta1": 0.8, "beta2": 0.96, "eps": 1e-10},
        },
    }


def _short(value: float) -> float:
    """Four digits: as much as a person reads, and more than a learning rate is good for."""
    return float(f"{value:.4g}")
