"""The built-in components, declared through the same hook as anybody's. Imports nothing but the contract."""

from __future__ import annotations

from collections.abc import Iterator

from ghostvis_plugins import (
    ComponentSpec,
    backbone,
    encoder,
    engine,
    hookimpl,
    optimizer,
    projector,
    resampler,
    task,
    tracker,
)

from .datasets.builtin import datasets


@hookimpl
def ghostvis_components() -> Iterator[ComponentSpec]:
    yield from _model()
    yield from datasets()
    yield from _tasks()
    yield from _run()


def _model() -> Iterator[ComponentSpec]:
    yield encoder(
        "efficientnet_lite",
        config="components.encoders.config:EfficientNetLite",
        build="components.encoders.efficientnet_lite:build",
        summary="EfficientNet-Lite0 with ImageNet weights",
        license="Apache-2.0",
    )
    yield encoder(
        "siglip",
        config="components.encoders.config:Siglip",
        build="components.encoders.vit:build_siglip",
        summary="SigLIP vision transformers, from B/16 to SO400M/14",
        license="Apache-2.0",
    )
    yield encoder(
        "siglip2",
        config="components.encoders.config:Siglip2",
        build="components.encoders.vit:build_siglip2",
        summary="SigLIP 2 vision transformers of fixed resolution",
        license="Apache-2.0",
    )
    yield encoder(
        "clip",
        config="components.encoders.config:Clip",
        build="components.encoders.vit:build_clip",
        summary="OpenAI's CLIP vision transformers",
        license="MIT",
    )
    yield encoder(
        "dinov2",
        config="components.encoders.config:Dinov2",
        build="components.encoders.vit:build_dinov2",
        summary="DINOv2 vision transformers, trained without labels",
        license="Apache-2.0",
    )
    yield resampler(
        "perceiver",
        config="components.resamplers.config:Perceiver",
        build="components.resamplers.perceiver:build",
        summary="learned latents read the image by cross-attention",
    )
    yield resampler(
        "avgpool",
        config="components.resamplers.config:AvgPool",
        build="components.resamplers.pooling:build_avgpool",
        summary="mean over the cells of a square grid",
    )
    yield resampler(
        "pixel_shuffle",
        config="components.resamplers.config:PixelShuffle",
        build="components.resamplers.pixel_shuffle:build",
        summary="neighbouring features side by side in one wider vector",
    )
    yield resampler(
        "idefics2",
        config="components.resamplers.config:Idefics2",
        build="components.resamplers.idefics2:build",
        summary="Idefics2's connector: projection first, then a perceiver; with projector identity",
    )
    yield resampler(
        "identity",
        config="components.resamplers.config:Identity",
        build="components.resamplers.pooling:build_identity",
        summary="every feature goes on as it is",
    )
    yield projector(
        "mlp",
        config="components.projectors.config:MLP",
        build="components.projectors.mlp:build_mlp",
        summary="two linear layers with a GELU between",
    )
    yield projector(
        "linear",
        config="components.projectors.config:Linear",
        build="components.projectors.mlp:build_linear",
        summary="one linear layer",
    )
    yield projector(
        "identity",
        config="components.projectors.config:Identity",
        build="components.projectors.mlp:build_identity",
        summary="no projection; both widths must be equal",
    )
    yield backbone(
        "gpt",
        config="components.backbones.config:GPT",
        build="components.backbones.gpt:build",
        summary="a small GPT trained from scratch; depth is the one dial",
    )
    yield backbone(
        "decoder",
        config="components.backbones.config:Decoder",
        build="components.backbones.decoder:build",
        tokenizer="components.backbones.decoder:tokenizer_folder",
        summary="pretrained language models: Qwen2.5, Qwen3, SmolLM2, Llama 3.2",
        license="Apache-2.0, Qwen Research or Llama 3.2 Community, by checkpoint",
    )
    yield engine(
        "native",
        config="components.engines.config:Native",
        build="components.engines.native:build",
        summary="key/value cache, batches, streaming, likelihoods",
    )


def _tasks() -> Iterator[ComponentSpec]:
    yield task(
        "easy_vqa",
        config="components.tasks.config:EasyVQATask",
        build="components.tasks.easy_vqa:build",
        summary="easy-VQA, published test split, free answers",
    )
    yield task(
        "openmoji_names",
        config="components.tasks.config:OpenMojiNamesTask",
        build="components.tasks.openmoji_names:build",
        summary="the right name of a held-out OpenMoji picture, by likelihood",
    )
    yield task(
        "scenes",
        config="components.tasks.config:ScenesTask",
        build="components.tasks.scenes:build",
        summary="questions about composed scenes of held-out pictures",
    )
    yield task(
        "captions",
        config="components.tasks.config:CaptionsTask",
        build="components.tasks.captions:build",
        summary="the right caption of a held-out picture, by likelihood",
    )
    yield task(
        "chat_perplexity",
        config="components.tasks.config:ChatPerplexityTask",
        build="components.tasks.perplexity:build",
        summary="perplexity of held-out dialogues",
    )


def _run() -> Iterator[ComponentSpec]:
    yield optimizer(
        "adamw",
        config="components.optimizers.config:AdamW",
        build="components.optimizers.adamw:build",
        summary="AdamW",
    )
    yield optimizer(
        "muon",
        config="components.optimizers.config:Muon",
        build="components.optimizers.muon:build",
        summary="orthogonalised momentum for hidden matrices, AdamW for the rest",
    )
    yield tracker(
        "jsonl",
        config="components.trackers.config:Jsonl",
        build="components.trackers.jsonl:build",
        summary="metrics.jsonl in the run directory",
    )
    yield tracker(
        "tensorboard",
        config="components.trackers.config:TensorBoard",
        build="components.trackers.services:build_tensorboard",
        summary="event files for TensorBoard; extra tensorboard",
    )
    yield tracker(
        "wandb",
        config="components.trackers.config:Wandb",
        build="components.trackers.services:build_wandb",
        summary="Weights & Biases, offline unless asked; extra wandb",
    )
    yield tracker(
        "trackio",
        config="components.trackers.config:Trackio",
        build="components.trackers.services:build_trackio",
        summary="trackio's database on this machine; extra trackio",
    )
