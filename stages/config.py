"""Options of the built-in stages, torch-free. What differs between stages is mostly their defaults here.

``kinds`` of a model are the kinds of component that the stage uses: choosing another one is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ghostvis_plugins.errors import ConfigError

from .depth import RATIO, VOCABULARY, values_of_depth

TEXT_KINDS = ("backbone", "dataset", "optimizer", "tracker", "engine")
VISION_KINDS = ("encoder", "resampler", "projector", *TEXT_KINDS)


class TokenizerConfig(BaseModel):
    """Learn a byte-level BPE vocabulary from the texts of the data sets."""

    model_config = ConfigDict(extra="forbid")
    kinds: ClassVar[tuple[str, ...]] = ("dataset",)

    vocab_size: int = Field(4096, ge=264, description="Ids in all: bytes, merges and control tokens.")
    max_samples: int = Field(200_000, ge=1, description="Samples read from each data set, in shuffled order.")
    max_bad_fraction: float = Field(
        0.001,
        ge=0,
        le=1,
        description="Unusable samples, as a share of all training samples, above which the stage stops.",
    )
    eval_samples: int = Field(
        256, ge=0, description="Held-out samples of each data set on which the report measures compression."
    )


class LoRA(BaseModel):
    """Adapters for a language model that stays frozen (:mod:`components.lora`)."""

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(16, ge=1, description="Rank of the matrix that is added to a layer's weight.")
    alpha: float = Field(32.0, gt=0, description="What is added is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of an adapter's inputs that are left out in training.")
    targets: list[str] | None = Field(
        None, description="Linear layers with an adapter, such as q_proj; default: all of the backbone's blocks."
    )


class TrainConfig(BaseModel):
    """What every training stage can be told."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"steps": 100}]})
    kinds: ClassVar[tuple[str, ...]] = VISION_KINDS

    steps: int | None = Field(None, ge=1, description="Optimizer steps. Give this or epochs.")
    epochs: float | None = Field(
        None, gt=0, description="Samples drawn, in multiples of the training samples, instead of steps."
    )
    batch_tokens: int = Field(8192, ge=1, description="Tokens of one optimizer step, over all ranks and micro-batches.")
    micro_tokens: int = Field(8192, ge=16, description="Tokens of one forward pass; also the longest sample.")
    pack_tokens: int | None = Field(
        None,
        ge=16,
        description="Length of the rows that a step's samples are chosen to fill; default: micro_tokens. It decides "
        "what a step holds, where micro_tokens alone only decides how it is computed.",
    )
    packing: bool = Field(
        True, description="Compute many samples together; false computes each alone, with the same losses, slowly."
    )
    workers: int | None = Field(
        None, ge=0, description="Threads that read, tokenise and decode; default: one per core; 0: the main thread."
    )
    prefetch: int = Field(
        2, ge=0, description="Micro-batches that are prepared while one is computed; 0 prepares each when it is due."
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="Fuse the element-wise work around matrix products with torch.compile; auto: on a CUDA device, "
        "where a C compiler is found. It costs half a minute at the start.",
    )
    deterministic: bool = Field(
        False,
        description="On a CUDA device, use only kernels that give the same bits every time, as CPUs do anyway; slower.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Keep only the inputs of the language model's layers and compute each layer again in the backward "
        "pass: a fraction of the memory for a third more operations.",
    )
    too_long: Literal["error", "skip"] = Field(
        "error",
        description="What a conversation longer than micro_tokens does: stop the run, or be left out and counted.",
    )

    word_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of an answer's tokens, but its last, that are read as random ones, so that the next word "
        "must come from the picture and the question and not from the words before it (Bowman et al. 2016).",
    )
    train: dict[str, float] = Field(
        default_factory=dict,
        description="Learning rate per module path; the longest matching path wins, 0 freezes, and so does no match. "
        'In a path * is any module, and -4: the last four of a list: "backbone.layers.-4:".',
    )
    lora: LoRA | None = Field(
        None, description="Train adapters of the backbone at its rates in train, and none of its own weights."
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="Learning rate after the warm-up; wsd is constant with a linear end."
    )
    warmup: float = Field(0.03, ge=0, description="Warm-up: a fraction of the steps below 1, else a number of steps.")
    warmdown: float = Field(0.3, ge=0, le=1, description="Share of the steps in which wsd goes down.")
    final_lr: float = Field(0.05, ge=0, le=1, description="Learning rate at the end, as a share of the peak.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0 does not clip.")

    features: Literal["none", "memory", "disk"] = Field(
        "none", description="Keep the outputs of a frozen encoder: not at all, in memory, or in the cache folder, too."
    )
    feature_memory_mb: int = Field(2048, ge=1, description="Most memory for kept encoder outputs, in MB.")
    encode_batch: int = Field(8, ge=1, description="Pictures that go through the encoder together.")
    max_bad_fraction: float = Field(
        0.001,
        ge=0,
        le=1,
        description="Unusable samples, as a share of all training samples, above which the run stops.",
    )

    eval_every: int = Field(0, ge=0, description="Steps between validations; 0 validates at the end only.")
    eval_samples: int = Field(256, ge=0, description="Validation samples, always the same ones; 0 never validates.")
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints; 0 keeps one at the end only.")
    checkpoint_async: bool | Literal["auto"] = Field(
        "auto",
        description="Copy weights and optimizer state to the host's memory and write the checkpoint from there while "
        "training goes on; auto: on a CUDA device. On a CPU the copies are a second set of both.",
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="Newest checkpoints that stay; the best one stays as well where it is exported."
    )
    keep_every: int = Field(0, ge=0, description="Checkpoints of steps that this divides stay, too; 0 keeps no more.")
    max_skipped_steps: int = Field(
        3,
        ge=0,
        description="Steps in a row that may be left out because their loss or gradient is not finite; with one more "
        "the run goes back to the weights of the last checkpoint, once, or stops. Each is written to incidents.jsonl "
        "with its samples.",
    )
    stall_seconds: float = Field(
        300.0,
        ge=0,
        description="Seconds without a finished step, validation or checkpoint after which the stacks of all threads "
        "are written to stall-rankN.txt and stderr; 0 never does.",
    )
    fsdp_above: float | None = Field(
        None,
        ge=0,
        description="Parameters above which several processes share out the weights, too (FSDP2); default: never.",
    )
    export: Literal["last", "best"] = Field("last", description="Which weights the model directory gets.")
    eval: list[str] = Field([], description="Tasks the model is for; default: those named like its data sets.")
    show_samples: int = Field(4, ge=0, description="Validation samples answered in the report.")
    log_seconds: float = Field(10.0, gt=0, description="Seconds between progress lines where there is no terminal.")

    @property
    def row_tokens(self) -> int:
        """Length of a packed row."""
        return self.pack_tokens or self.micro_tokens

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if any(rate < 0 for rate in self.train.values()):
            raise ValueError("a learning rate in train is negative")
        return self


class PretrainConfig(TrainConfig):
    """Train the language model on text."""

    kinds: ClassVar[tuple[str, ...]] = TEXT_KINDS
    dial: ClassVar[str] = "depth"

    depth: int | None = Field(
        None,
        ge=1,
        le=128,
        description="The one dial of a gpt from scratch: shape, batch, learning rates, decay and steps follow from it, "
        "beneath what is said otherwise.",
    )
    ratio: float = Field(RATIO, gt=0, description="With depth: tokens for each weight of the blocks and the head.")
    train: dict[str, float] = Field({"backbone": 3e-3}, description=TrainConfig.model_fields["train"].description)

    @classmethod
    def derive(cls, run: Mapping[str, Any], above: Mapping[str, Any], cwd: Path) -> tuple[str, dict[str, Any]] | None:
        """What ``stage.depth`` implies, and what it is called as an origin (see ``ghostvis_plugins.config``).

        ``above`` is what layers from the dial's own upwards say; it decides which of two contradicting ways to say a
        thing is meant. None for values that the stage's own model is going to refuse.
        """
        stage = run["stage"]
        depth, ratio = stage["depth"], stage.get("ratio", RATIO)
        if type(depth) is not int or not 1 <= depth <= 128 or type(ratio) not in (int, float) or ratio <= 0:
            return None
        backbone = above.get("backbone", {}).get("name", "gpt")
        if backbone != "gpt":
            raise ConfigError(
                f"stage.depth = {depth} is the dial of the backbone 'gpt', and '{backbone}' is chosen",
                hint="leave one of them out",
            )
        vocab_size = _vocabulary(cwd / run["from"]) if isinstance(run.get("from"), str) else None
        values = values_of_depth(depth, vocab_size or VOCABULARY, ratio)
        own, said = values["stage"], above.get("stage", {})
        if said.get("epochs") is not None:
            del own["steps"]
        tables = said.get("train")
        for path in list(own["train"]) if isinstance(tables, Mapping) else ():
            if any(path.startswith(f"{wider}.") for wider in tables or ()):
                del own["train"][path]  # or the wider path, which was meant, would match nothing
        return f"stage.depth = {depth} with {vocab_size or VOCABULARY:,} token ids", values


def _vocabulary(folder: Path) -> int | None:
    """Token ids of a tokenizer or model directory; None where it does not say, which its reader explains later."""
    try:
        size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return size if type(size) is int and size > 0 else None


class MidConfig(TrainConfig):
    """Go on with a trained model, on a mixture of texts, conversations and problems."""

    kinds: ClassVar[tuple[str, ...]] = TEXT_KINDS

    train: dict[str, float] = Field(
        {"resampler": 3e-4, "projector": 3e-4, "backbone": 3e-4},
        description=f"{TrainConfig.model_fields['train'].description} Of a model without a vision path, only the "
        "language model's paths count.",
    )


class AlignConfig(TrainConfig):
    """Teach the resampler and the projector to speak the language model's language."""

    train: dict[str, float] = Field(
        {"resampler": 1e-3, "projector": 1e-3}, description=TrainConfig.model_fields["train"].description
    )
    features: Literal["none", "memory", "disk"] = Field(
        "memory", description=TrainConfig.model_fields["features"].description
    )


class SFTConfig(TrainConfig):
    """Teach the whole model, or its last layers, but not its encoder, to answer."""

    train: dict[str, float] = Field(
        {"resampler": 1e-3, "projector": 1e-3, "backbone": 1e-3},
        description=TrainConfig.model_fields["train"].description,
    )
    features: Literal["none", "memory", "disk"] = Field(
        "memory", description=TrainConfig.model_fields["features"].description
    )
