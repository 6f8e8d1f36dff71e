"""The built-in stages, declared through the same hook as anybody's. Imports nothing but the contract."""

from __future__ import annotations

from collections.abc import Iterator

from ghostvis_plugins import ComponentSpec, hookimpl, stage


@hookimpl
def ghostvis_components() -> Iterator[ComponentSpec]:
    yield stage(
        "tokenizer",
        config="stages.config:TokenizerConfig",
        build="stages.tokenizer:build",
        summary="learn a byte-level BPE vocabulary",
    )
    yield stage(
        "pretrain",
        config="stages.config:PretrainConfig",
        build="stages.pretrain:build",
        summary="train the language model on text",
    )
    yield stage(
        "mid",
        config="stages.config:MidConfig",
        build="stages.mid:build",
        summary="go on with a model on texts, conversations, problems",
    )
    yield stage(
        "align",
        config="stages.config:AlignConfig",
        build="stages.align:build",
        summary="train resampler and projector, the rest frozen",
    )
    yield stage(
        "sft",
        config="stages.config:SFTConfig",
        build="stages.sft:build",
        summary="train all but the encoder on conversations",
    )
