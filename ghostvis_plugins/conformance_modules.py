"""Checks of the kinds that are torch modules, and of those that work on tensors.

Outputs must have the declared shape, on the CPU and on the meta device; a document must not see another one; cached
decoding must equal the full pass; weights must survive safetensors; every parameter that can be trained must get a
gradient. Freshly initialised layers are often zero, which would hide a leak, so the weights are disturbed first.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import protocols
from .conformance import Report, first_that_fits, fits

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Forward = Callable[[nn.Module, torch.device], Tensor]

MAX_PARAMETERS = 50_000_000
"""Larger modules are checked on the meta device only."""

IN_TOKENS = (64, 49, 196, 16)
IN_DIM = 64
MODEL_DIM = 96
VOCABULARY = 97
TOLERANCE = 1e-4


def check_encoder(build: Callable[..., Any], config: Any, report: Report) -> None:
    """Declared image size, tokens and width equal the real ones; preprocessing fits forward."""
    import torch

    def make() -> Any:
        return build(config)

    def forward(module: Any, device: torch.device) -> Tensor:
        return module(_noise(2, 3, *module.image_size, device=device))

    module = _build_on_meta(make, protocols.Encoder, forward, report)
    if module is None:
        return
    declared = (2, module.tokens, module.out_dim)
    with report.step("shape-meta"):
        _shape(report, "shape-meta", forward(module, torch.device("meta")), declared)
    module = _build_on_cpu(make, module, report)
    if module is None:
        return
    _check_preprocessing(module, report)
    with report.step("forward"), torch.no_grad():
        module.eval()
        pixels = _noise(2, 3, *module.image_size)
        features = module(pixels)
        _shape(report, "shape", features, declared)
        report.expect(features.dtype == torch.float32, "dtype", f"float32 pixels give {features.dtype} features")
        report.expect(not torch.equal(features[0], features[1]), "sees-image", "two pictures give equal features")
        same = _equal(module(pixels[:1])[0], features[0])
        report.expect(same, "batch", "features of a picture depend on the pictures beside it (in evaluation mode)")
    _check_training(module, forward, report)
    _check_safetensors(module, make, forward, report)


def check_resampler(build: Callable[..., Any], config: Any, report: Report) -> None:
    """``[I, P, Dv]`` → ``[I, tokens, out_dim]``."""
    known = {"in_dim": IN_DIM}
    if "model_dim" in inspect.signature(build).parameters:
        known["model_dim"] = MODEL_DIM
    _check_feature_module(
        report,
        protocols.Resampler,
        [(partial(build, config, in_tokens=count, **known), count, IN_DIM) for count in IN_TOKENS],
        lambda module, _: (2, module.tokens, module.out_dim),
    )


def check_projector(build: Callable[..., Any], config: Any, report: Report) -> None:
    """``[I, N, Dr]`` → ``[I, N, out_dim]``; an identity may insist on equal widths."""
    _check_feature_module(
        report,
        protocols.Projector,
        [(partial(build, config, in_dim=IN_DIM, out_dim=width), 5, width) for width in (IN_DIM // 2, IN_DIM)],
        lambda module, out_dim: (2, 5, out_dim),
    )


def _check_feature_module(
    report: Report, protocol: type, variants: list[Any], shape: Callable[[Any, int], tuple[int, ...]]
) -> None:
    """What resamplers and projectors have in common. ``variants`` are ``(make, positions, width)``."""
    import torch

    chosen: list[Any] = []

    def attempt(variant: Any) -> Any:
        module = variant[0]()
        chosen[:] = variant
        return module

    with report.step("build"), torch.device("meta"):
        first_that_fits([partial(attempt, variant) for variant in variants])
    if not chosen:
        return
    make, positions, width = chosen

    def forward(module: Any, device: torch.device) -> Tensor:
        return module(_noise(2, positions, IN_DIM, device=device))

    module = _build_on_meta(make, protocol, forward, report)
    if module is None:
        return
    with report.step("shape-meta"):
        _shape(report, "shape-meta", forward(module, torch.device("meta")), shape(module, width))
    if protocol is protocols.Projector:
        report.expect(module.out_dim == width, "shape", f"out_dim is {module.out_dim}, it was built for {width}")
    module = _build_on_cpu(make, module, report)
    if module is None:
        return
    with report.step("forward"), torch.no_grad():
        features = _noise(2, positions, IN_DIM)
        result = module.eval()(features)
        _shape(report, "shape", result, shape(module, width))
        same = _equal(module(features[:1])[0], result[0])
        report.expect(same, "batch", "the vectors of an image depend on the images beside it (in evaluation mode)")
        report.expect(not _equal(result[0], result[1]), "sees-image", "two images give equal vectors")
    _check_training(module, forward, report)
    _check_safetensors(module, make, forward, report)


def check_backbone(build: Callable[..., Any], config: Any, report: Report) -> None:
    """Packed documents stay apart, attention is causal, cached decoding equals the full pass."""
    import torch

    def make() -> Any:
        return build(config, vocab_size=VOCABULARY)

    def forward(module: Any, device: torch.device) -> Tensor:
        ids, positions, bounds = _two_documents(device)
        hidden = module(module.embed(ids), positions=positions, cu_seqlens=bounds)
        return module.logits(hidden)

    module = _build_on_meta(make, protocols.Backbone, forward, report)
    if module is None:
        return
    enough = module.vocab_size >= VOCABULARY
    report.expect(enough, "shape", f"vocab_size is {module.vocab_size}, asked for at least {VOCABULARY}")
    with report.step("shape-meta"):
        _shape(report, "shape-meta", forward(module, torch.device("meta")), (11, module.vocab_size))
    module = _build_on_cpu(make, module, report)
    if module is None:
        return
    _disturb(module)
    module.eval()
    with report.step("forward"), torch.no_grad():
        ids, positions, bounds = _two_documents(torch.device("cpu"))
        hidden = module(module.embed(ids), positions=positions, cu_seqlens=bounds)
        _shape(report, "shape", hidden, (11, module.dim))
        logits = module.logits(hidden)
        _shape(report, "shape", logits, (11, module.vocab_size))
        report.expect(logits.dtype == torch.float32, "dtype", f"logits are {logits.dtype}, not float32")
        _check_isolation(module, ids, positions, bounds, hidden, report)
    with report.step("cache"), torch.no_grad():
        _check_cache(module, report)
    _check_training(module, forward, report)
    _check_safetensors(module, make, forward, report)


def _check_isolation(
    module: Any, ids: Tensor, positions: Tensor, bounds: Tensor, hidden: Tensor, report: Report
) -> None:
    import torch

    def changed(position: int) -> Tensor:
        other = ids.clone()
        other[position] = (other[position] + 1) % VOCABULARY
        return module(module.embed(other), positions=positions, cu_seqlens=bounds)

    first = changed(0)
    report.expect(_equal(first[5:], hidden[5:]), "packing", "a document sees the one before it")
    report.expect(not torch.allclose(first[1:5], hidden[1:5]), "attention", "a token does not see the ones before it")
    last = changed(4)
    report.expect(_equal(last[:4], hidden[:4]), "causal", "a token sees the ones after it")


def _check_cache(module: Any, report: Report) -> None:
    """Two rows of different lengths, fed as a prompt and then token by token."""
    import torch

    ids, positions, bounds = _two_documents(torch.device("cpu"))
    full = module(module.embed(ids), positions=positions, cu_seqlens=bounds)
    cache = module.new_cache(2, 8)
    rows = [(0, 5), (5, 11)]
    pieces: list[list[Tensor]] = [[], []]
    for start, stop in ((0, 3), (3, 4), (4, 5)):
        parts = [torch.arange(first + start, first + stop) for first, _ in rows]
        index = torch.cat(parts)
        lengths = torch.tensor([0, *(len(part) for part in parts)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        out = module(module.embed(ids[index]), positions=positions[index], cu_seqlens=lengths, cache=cache)
        for row, part in enumerate(out.split(stop - start)):
            pieces[row].append(part)
    for row, (first, _) in enumerate(rows):
        same = _equal(torch.cat(pieces[row]), full[first : first + 5])
        report.expect(same, "cache", f"cached decoding differs from the full pass (row {row})")


def check_optimizer(build: Callable[..., Any], config: Any, report: Report) -> None:
    """It lowers a quadratic, and continues from its saved state as if nothing had happened."""
    import torch

    def make(parameter: Tensor) -> Any:
        return build(config, groups=[{"params": [parameter], "names": ["layer.weight"], "lr": 0.01}])

    def step(optimizer: Any, parameter: Tensor) -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    with report.step("optimizer"):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(8, 8))
        optimizer = make(weight)
        if not fits(report, optimizer, protocols.Optimizer):
            return
        losses = [step(optimizer, weight) for _ in range(5)]
        report.expect(losses[-1] < losses[0], "optimizer", "five steps on a quadratic do not lower it")
        other = torch.nn.Parameter(weight.detach().clone())
        resumed = make(other)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors otherwise
        step(optimizer, weight)
        step(resumed, other)
        report.expect(torch.equal(weight, other), "state-dict", "it takes another step after its state was restored")


def check_rl(build: Callable[..., Any], config: Any, report: Report) -> None:
    """Finite advantages, also for a group of one; an unreduced loss that is zero where the mask is."""
    import torch

    with report.step("rl"):
        method = build(config)
        if not fits(report, method, protocols.RLAlgorithm):
            return
        advantages = method.advantages(torch.tensor([1.0, 0.0, 1.0, 0.5]), torch.tensor([0, 0, 0, 1]))
        _shape(report, "advantages", advantages, (4,))
        report.expect(torch.isfinite(advantages).all(), "advantages", "a group of one gives NaN or infinity")
        logp = torch.full((4, 3), -1.0, requires_grad=True)
        mask = torch.tensor([[True, True, False]] * 4)
        loss = method.token_loss(logp, logp.detach(), advantages, mask)
        _shape(report, "token-loss", loss, (4, 3))
        report.expect((loss[~mask] == 0).all(), "token-loss", "masked tokens have a loss")
        loss.sum().backward()
        report.expect(logp.grad is not None, "gradient", "the loss has no gradient")


def _build_on_meta(make: Callable[[], Any], protocol: type, forward: Forward, report: Report) -> Any:
    """The module on the meta device, or None. No memory may be allocated there."""
    import torch

    with report.step("build-meta"):
        with torch.device("meta"):
            module = make()
        if not report.expect(
            isinstance(module, torch.nn.Module), "build", f"{type(module).__name__} is no torch module"
        ):
            return None
        real = [name for name, parameter in module.named_parameters() if parameter.device.type != "meta"]
        report.expect(not real, "build-meta", f"parameters are allocated under the meta device: {', '.join(real[:3])}")
        return module if fits(report, module, protocol) else None
    return None


def _build_on_cpu(make: Callable[[], Any], meta: Any, report: Report) -> Any:
    """A filled module on the CPU; None when it is too large or its weights are out of reach."""
    import torch

    count = sum(parameter.numel() for parameter in meta.parameters())
    if count > MAX_PARAMETERS:
        report.skipped.append(f"forward: {count:,} parameters; checked on the meta device only, pass smaller options=")
        return None
    filled = []
    with report.step("init-weights"):
        torch.manual_seed(0)
        module = make()
        module.init_weights()
        bad = [name for name, value in module.state_dict().items() if not torch.isfinite(value.float()).all()]
        report.expect(not bad, "init-weights", f"not finite after init_weights: {', '.join(bad[:3])}")
        filled.append(module)
    return filled[0] if filled else None


def _check_preprocessing(module: Any, report: Report) -> None:
    import json

    import torch
    from PIL import Image

    with report.step("preprocess"):
        height, width = module.image_size
        for size in ((53, 37), (300, 7)):
            picture = Image.effect_noise(size, 80).convert("RGB")
            pixels = module.preprocess(picture)
            _shape(report, "preprocess", pixels, (3, height, width))
            report.expect(pixels.dtype == torch.float32, "preprocess", f"pixels are {pixels.dtype}, not float32")
            report.expect(pixels.device.type == "cpu", "preprocess", "pixels are not on the CPU")
            same = torch.equal(pixels, module.preprocess(picture))
            report.expect(same, "preprocess", "the same picture gives other pixels the second time")
            if module.transform().get("resize") == "fast":
                values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
                found = module.preprocess(values.view(size[1], size[0], 3).permute(2, 0, 1))
                report.expect(torch.equal(pixels, found), "preprocess", "the same picture as tensor gives other pixels")
    with report.step("transform"):
        json.dumps(dict(module.transform()), sort_keys=True, allow_nan=False)


def _check_training(module: Any, forward: Forward, report: Report) -> None:
    """Every parameter that can be trained gets a gradient."""
    import torch

    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trainable:
        return
    with report.step("gradient"):
        module.train()
        module.zero_grad()
        forward(module, torch.device("cpu")).float().square().mean().backward()
        without = [name for name, parameter in trainable.items() if parameter.grad is None]
        report.expect(not without, "gradient", f"trainable parameters without gradient: {', '.join(without[:5])}")
        module.zero_grad()


def _check_safetensors(module: Any, make: Callable[[], Any], forward: Forward, report: Report) -> None:
    """A module that is built anew and loaded, without ``init_weights``, computes the same."""
    import torch
    from safetensors.torch import load_model, save_model

    with report.step("safetensors"), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = str(Path(folder) / "model.safetensors")
        save_model(module, path)
        torch.manual_seed(1)
        other = make()
        load_model(other, path)
        module.eval()
        other.eval()
        expected, found = forward(module, torch.device("cpu")), forward(other, torch.device("cpu"))
        report.expect(torch.equal(expected, found), "safetensors", "it computes something else after save and load")


def _two_documents(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and positions of documents of 5 and 6 tokens, and their bounds."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (11,), generator=generator).to(device)
    positions = torch.cat((torch.arange(5), torch.arange(6))).to(device)
    return ids, positions, torch.tensor([0, 5, 11], dtype=torch.int32)


def _noise(*shape: int, device: torch.device | None = None) -> Tensor:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device or "cpu")


def _equal(left: Tensor, right: Tensor) -> bool:
    import torch

    return torch.allclose(left, right, rtol=TOLERANCE, atol=TOLERANCE)


def _disturb(module: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _shape(report: Report, check: str, tensor: Tensor, declared: tuple[int, ...]) -> None:
    found = tuple(tensor.shape)
    report.expect(found == declared, check, f"the output is {list(found)}, declared is {list(declared)}")
