"""From resolved values to a model, and to a plan of it that costs nothing.

The one place where the parts of a model are built by name. Shapes are checked between parts as they are built,
so a mismatch is found on the meta device, before any weight is allocated.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from components.vlm import VLM
from ghostvis_plugins import ConfigError

if TYPE_CHECKING:
    from ghostvis_plugins.manager import Registry

PARTS = ("encoder", "resampler", "projector", "backbone")
ATTRIBUTES = {
    "encoder": ("image_size", "tokens", "out_dim"),
    "resampler": ("tokens", "out_dim"),
    "projector": ("out_dim",),
    "backbone": ("dim", "vocab_size", "max_positions", "n_layers"),
}


def build_model(
    values: Mapping[str, Any],
    registry: Registry,
    vocab_size: int,
    *,
    meta: bool = False,
    origins: Mapping[str, str] | None = None,
    init: bool = True,
) -> VLM:
    """The model that ``values["encoder" | "resampler" | "projector" | "backbone"]`` describe.

    Each value is a name or a table ``{"name": …, options…}``. Without an encoder the model is a plain language
    model, whatever the other two say. ``init`` fills the weights (pretrained or random); ``meta`` builds shapes
    only. ``origins`` maps dotted keys to where values came from, for the error messages.

    Raises ConfigError when dimensions do not fit, MissingError for an unknown name, UnavailableError when
    pretrained weights are out of reach.
    """
    with torch.device("meta") if meta else nullcontext():
        model = _Composer(values, registry, origins or {}).compose(vocab_size)
    if init and not meta:
        model.init_weights()
    return model


def components_of(model: VLM, values: Mapping[str, Any], registry: Registry) -> dict[str, dict[str, Any] | None]:
    """Each part's name with every option spelt out, as a model directory records it; None for an absent part.

    A part that keeps its options in ``config`` says itself what they are: it may have learnt some from a checkpoint.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for kind in PARTS:
        module, options = getattr(model, kind), component_options(values, kind)
        if module is None or options is None:
            found[kind] = None
            continue
        config = registry.make_config(kind, options["name"], options)
        own = getattr(module, "config", None)
        known = own if isinstance(own, type(config)) else config
        found[kind] = {"name": options["name"], **known.model_dump(mode="json")}
    return found


def pretrained_tokenizer(values: Mapping[str, Any], registry: Registry) -> Path | None:
    """The folder of the tokenizer that the chosen backbone's weights know; None when they know none.

    Raises UnavailableError when the weights are out of reach.
    """
    options = component_options(values, "backbone")
    if options is None:
        return None
    spec = registry.get("backbone", options["name"])
    return spec.load_tokenizer()(registry.make_config("backbone", options["name"], options))


def component_options(values: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """The table of one part as a dictionary with ``name``; None where the part is absent."""
    value = values.get(kind)
    if not value:
        return None
    return {"name": value} if isinstance(value, str) else dict(value)


class _Composer:
    def __init__(self, values: Mapping[str, Any], registry: Registry, origins: Mapping[str, str]) -> None:
        self.options = {kind: component_options(values, kind) for kind in PARTS}
        self.registry, self.origins = registry, origins

    def compose(self, vocab_size: int) -> VLM:
        backbone = self.part("backbone", vocab_size=vocab_size)
        if backbone.vocab_size < vocab_size:
            self.fail("backbone", f"backbone.vocab_size {backbone.vocab_size} < tokenizer.vocab_size {vocab_size}")
        if self.options["encoder"] is None:
            return VLM(backbone)
        encoder = self.part("encoder")
        resampler = self.part(
            "resampler", in_dim=encoder.out_dim, in_tokens=encoder.tokens, optional={"model_dim": backbone.dim}
        )
        source = "encoder" if resampler.out_dim == encoder.out_dim else "resampler"
        projector = self.part("projector", source, in_dim=resampler.out_dim, out_dim=backbone.dim)
        if projector.out_dim != backbone.dim:
            self.fail("projector", f"projector.out_dim {projector.out_dim} != backbone.dim {backbone.dim}")
        if resampler.tokens >= backbone.max_positions:
            self.fail(
                "resampler",
                f"resampler.tokens {resampler.tokens} leave no room for text in "
                f"backbone.max_positions {backbone.max_positions}",
            )
        return VLM(backbone, encoder, resampler, projector)

    def part(
        self, kind: str, source: str = "encoder", *, optional: Mapping[str, int] = MappingProxyType({}), **known: int
    ) -> Any:
        """Build one part. ``known`` is what only the composition knows; ``source`` the part ``in_dim`` stems from.

        Of ``optional`` a builder gets what it names among its parameters.
        """
        options = self.options[kind]
        if options is None:
            raise ConfigError(
                f"no {kind} chosen", hint=f"choose one with --{kind} NAME; `ghostvis components {kind}` lists them"
            )
        config = self.registry.make_config(kind, options["name"], options, self.origins)
        expected = getattr(config, "in_dim", None)
        if expected is not None and expected != known.get("in_dim", expected):
            self.fail(f"{kind}.in_dim", f"{kind}.in_dim {expected} != {source}.out_dim {known['in_dim']}")
        build = self.registry.get(kind, options["name"]).load_build()
        named = inspect.signature(build).parameters if optional else ()
        module = build(config, **known, **{key: value for key, value in optional.items() if key in named})
        for attribute in ATTRIBUTES[kind]:
            if not hasattr(module, attribute):
                self.fail(kind, f"{kind} '{options['name']}' has no attribute '{attribute}'; its Protocol asks for it")
        return module

    def fail(self, key: str, message: str) -> NoReturn:
        origin = self.origins.get(key) or self.origins.get(f"{key}.name")
        raise ConfigError(f"{message} [{key} from {origin}]" if origin else message)
