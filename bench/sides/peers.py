"""The peers, each as its own users run it: transformers with Liger's kernels, a LLaVA of them, timm, nanochat.

Padding stands on the right, where no causal query sees it and no label is, so the peer is given no mask: with one it
would leave torch's fastest attention. Weights and AdamW's state are bfloat16 on a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .measuring import drop, now
from .work import Sample, Work

IGNORED = -100


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def dtype_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def transformers_name(device: torch.device) -> str:
    liger = f"Liger {version('liger-kernel')}" if device.type == "cuda" else "no Liger, which needs a GPU"
    return f"transformers {version('transformers')}, {liger}"


def qwen2(arch: Mapping[str, Any], device: torch.device) -> Any:
    """A Qwen2 of our architecture table, with Liger's kernels on a GPU."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    if device.type == "cuda":
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2

        apply_liger_kernel_to_qwen2()
    config = Qwen2Config(
        vocab_size=arch["vocab_size"],
        hidden_size=arch["dim"],
        intermediate_size=arch["ffn"],
        num_hidden_layers=arch["layers"],
        num_attention_heads=arch["heads"],
        num_key_value_heads=arch["kv_heads"],
        max_position_embeddings=arch["max_positions"],
        rms_norm_eps=arch.get("norm_eps", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": arch["rope_theta"]},
        tie_word_embeddings=arch["tie"],
        use_cache=False,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype_of(device), attn_implementation="sdpa")


class Padded:
    """Padded batches of a step's samples, ``micro`` in each."""

    def __init__(self, work: Work, samples: list[Sample], micro: int, pins: bool) -> None:
        self.batches: list[tuple[Tensor, Tensor, Tensor | None, float]] = []
        total = sum(len(sample.answer) for sample in samples)
        for at in range(0, len(samples), micro):
            members = samples[at : at + micro]
            longest = max(sample.length(work.tokens_per_image) for sample in members)
            ids = torch.zeros(len(members), longest, dtype=torch.long)
            labels = torch.full_like(ids, IGNORED)
            for row, sample in enumerate(members):
                own = sample.ids(work.tokens_per_image, work.marker)
                ids[row, : len(own)] = torch.tensor(own)
                labels[row, len(own) - len(sample.answer) : len(own)] = torch.tensor(sample.answer)
            pixels = work.pixels(members)
            share = sum(len(sample.answer) for sample in members) / total
            if pins:
                ids, labels = ids.pin_memory(), labels.pin_memory()
                pixels = None if pixels is None else pixels.pin_memory()
            self.batches.append((ids, labels, pixels, share))


class Transformers:
    """Steps of a transformers model over padded batches, AdamW fused. With pictures it is a LLaVA."""

    def __init__(
        self, arch: Mapping[str, Any], work: Work, device: torch.device, vision: Any = None, *, frozen: bool = False
    ) -> None:
        self.work, self.device, self.losses = work, device, []
        self.net = Llava(arch, work, device, vision, frozen) if vision else Text(arch, device)
        self.net.train()
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
        self.steps: list[Padded] = []
        self.at = self.micro = 0

    def prepare(self, micro: int) -> None:
        self.micro = micro
        self.steps = [Padded(self.work, samples, micro, self.device.type == "cuda") for samples in self.work.steps]

    def run(self, count: int) -> list[float]:
        seconds, losses = [], []
        began = now(self.device)
        for _ in range(count):
            self.at += 1
            total = torch.zeros((), device=self.device)
            for ids, labels, pixels, share in self.steps[self.at % len(self.steps)].batches:
                loss = self.net(
                    *(x if x is None else x.to(self.device, non_blocking=True) for x in (ids, labels, pixels))
                )
                (loss * share if share < 1 else loss).backward()
                total += loss.detach() * share
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(total)
            ended = now(self.device)
            seconds.append(ended - began)
            began = ended
        self.losses += [float(loss) for loss in losses]
        return seconds

    def model(self) -> nn.Module | None:
        return self.net

    def forget(self) -> None:
        drop(self.net, self.optimizer)

    def facts(self) -> Mapping[str, Any]:
        batches = self.steps[0].batches
        kept = sum(self.work.lengths()) / sum(ids.numel() for step in self.steps for ids, *_ in step.batches)
        return {"micro_samples": self.micro, "batches": len(batches), "fill": round(kept, 3)}


class Text(nn.Module):
    """A language model that returns its loss."""

    def __init__(self, arch: Mapping[str, Any], device: torch.device) -> None:
        super().__init__()
        self.llm = qwen2(arch, device)

    def forward(self, ids: Tensor, labels: Tensor, pixels: Tensor | None) -> Tensor:
        return self.llm(input_ids=ids, labels=labels, use_cache=False, return_dict=True).loss


class Llava(nn.Module):
    """SigLIP without its head, frozen; means of cells where fewer tokens are wanted; two layers; Qwen2."""

    def __init__(
        self, arch: Mapping[str, Any], work: Work, device: torch.device, vision: Mapping[str, Any], frozen: bool
    ) -> None:
        super().__init__()
        from transformers import AutoModel, SiglipVisionConfig

        self.marker = work.marker
        config = SiglipVisionConfig(
            **vision, image_size=work.image_size, patch_size=16, hidden_act="gelu_pytorch_tanh", vision_use_head=False
        )
        dtype, width = dtype_of(device), vision["hidden_size"]
        with torch.device(device):
            self.vision = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
            self.projector = nn.Sequential(
                nn.Linear(width, arch["dim"], dtype=dtype), nn.GELU(), nn.Linear(arch["dim"], arch["dim"], dtype=dtype)
            )
        self.vision.requires_grad_(False)
        self.llm = qwen2(arch, device)
        self.llm.requires_grad_(not frozen)
        self.grid = work.image_size // 16
        self.cell = round((self.grid**2 / work.tokens_per_image) ** 0.5)

    def train(self, mode: bool = True) -> Llava:
        super().train(mode)
        self.vision.eval()
        return self

    def forward(self, ids: Tensor, labels: Tensor, pixels: Tensor | None) -> Tensor:
        x = self.llm.get_input_embeddings()(ids)
        if pixels is not None:
            with torch.no_grad():
                features = self.vision(pixel_values=pixels.to(x.dtype)).last_hidden_state
                if self.cell > 1:
                    plane = features.mT.unflatten(-1, (self.grid, self.grid))
                    features = F.avg_pool2d(plane, self.cell).flatten(2).mT
            vectors = self.projector(features)
            x = x.masked_scatter((ids == self.marker)[..., None], vectors.to(x.dtype))
        return self.llm(inputs_embeds=x, labels=labels, use_cache=False, return_dict=True).loss


class Timm:
    """A compiled tower of timm, patch features of ``batch`` pictures; a step is ``calls`` of them."""

    def __init__(self, options: Mapping[str, Any], pictures: Tensor, batch: int, calls: int, device: torch.device):
        from timm import create_model

        with torch.device(device):
            tower = create_model(**options, pretrained=False, num_classes=0, global_pool="")
        tower = tower.to(dtype_of(device)).eval().requires_grad_(False)
        self.forward = torch.compile(tower.forward_features)
        self.pixels = pictures[torch.arange(batch) % len(pictures)].to(device)
        self.dtype, self.calls, self.device, self.losses = dtype_of(device), calls, device, []

    def prepare(self, micro: int) -> None:
        pass

    @torch.no_grad()
    def run(self, count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            began = now(self.device)
            for _ in range(self.calls):
                features = self.forward(self.pixels.to(self.dtype))
            seconds.append(now(self.device) - began)
            self.losses.append(float(features.float().mean()))
        return seconds

    def model(self) -> nn.Module | None:
        return None

    def forget(self) -> None:
        pass

    def facts(self) -> Mapping[str, Any]:
        return {"batch": len(self.pixels)}


class Nanochat:
    """nanochat's own model, optimizer and step (``scripts/base_train.py``), from a folder that holds its package.

    Compiled as it does it. ``windows`` is its pattern of short and long contexts: "SSSL" is its default, and "L", the
    whole context in every layer, what its script advises where FlashAttention 3 is missing.
    """

    def __init__(
        self,
        folder: Path,
        depth: int,
        work: Work,
        vocabulary: int,
        device: torch.device,
        aspect: int,
        head: int,
        windows: str,
    ):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        gpt = importlib.import_module("nanochat.gpt")
        self.fa3 = bool(importlib.import_module("nanochat.flash_attention").USE_FA3)
        length = len(work.steps[0][0].prompt) + len(work.steps[0][0].answer)
        width = -(-depth * aspect // head) * head
        config = gpt.GPTConfig(
            sequence_len=length,
            vocab_size=vocabulary,
            n_layer=depth,
            n_head=width // head,
            n_kv_head=width // head,
            n_embd=width,
            window_pattern=windows,
        )
        with torch.device("meta"):
            self.net = gpt.GPT(config)
        self.net.to_empty(device=device)
        self.net.init_weights()
        self.compiled = torch.compile(self.net, dynamic=False)
        # The defaults of its script at a batch of 2^19 tokens; they do not change what a step costs.
        self.optimizer = self.net.setup_optimizer(
            unembedding_lr=0.008, embedding_lr=0.3, scalar_lr=0.5, matrix_lr=0.02, weight_decay=0.28
        )
        self.work, self.device, self.losses = work, device, []
        self.steps: list[list[tuple[Tensor, Tensor]]] = []
        self.at = self.micro = 0

    def prepare(self, micro: int) -> None:
        self.micro = micro
        self.steps = []
        for samples in self.work.steps:
            rows = torch.tensor([[*sample.prompt, *sample.answer] for sample in samples])
            following = torch.cat([rows[:, 1:], rows[:, :1]], dim=1)  # it reads one token more than it feeds
            pairs = zip(rows.split(micro), following.split(micro), strict=True)
            pins = self.device.type == "cuda"
            self.steps.append([(x.pin_memory(), y.pin_memory()) if pins else (x, y) for x, y in pairs])

    def run(self, count: int) -> list[float]:
        seconds, losses = [], []
        with _as_its_script():
            for _ in range(count):
                began = now(self.device)
                self.at += 1
                batches = self.steps[self.at % len(self.steps)]
                for x, y in batches:
                    loss = self.compiled(*(t.to(self.device, non_blocking=True) for t in (x, y)))
                    kept = loss.detach()
                    (loss / len(batches)).backward()
                for group in self.optimizer.param_groups:
                    group["lr"] = group["initial_lr"]
                self.optimizer.step()
                self.net.zero_grad(set_to_none=True)
                losses.append(kept.item())
                seconds.append(now(self.device) - began)
        self.losses += losses
        return seconds

    def model(self) -> nn.Module | None:
        return self.net

    def forget(self) -> None:
        drop(self.net, self.optimizer)

    def facts(self) -> Mapping[str, Any]:
        kernel = "FlashAttention 3" if self.fa3 else "SDPA"
        return {"micro_samples": self.micro, "attention": f"{kernel}, windows {self.net.config.window_pattern}"}

    def windows(self, model: Any) -> list[int]:
        """Keys that a query of each layer sees at most."""
        length = model.config.sequence_len
        return [length if left < 0 else min(left, length) for left, _ in model.window_sizes]


def nanochat_name(folder: Path) -> str:
    commit = folder / "COMMIT"
    return f"nanochat {commit.read_text().strip()[:7] if commit.exists() else 'of unknown version'}"


@contextlib.contextmanager
def _as_its_script() -> Iterator[None]:
    """nanochat's script lets float32 products use TF32, and switches the garbage collector off."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_float32_matmul_precision(before)
