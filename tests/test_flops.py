"""What a step costs: counts on the meta device against torch's counter on real batches, and the field's formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from miniature import EncoderOptions, TinyEncoder, registry, square
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from components.attention import Buckets
from components.backbones.config import GPT as GPTConfig
from components.backbones.gpt import GPT
from components.batch import Batch
from components.flops import StepFlops, peak_flops, peak_of_name
from components.rendering import Rendered
from components.vlm import VLM
from stages.config import LoRA
from stages.optim import apply_table, set_modes

LAYERS, DIM, VOCABULARY, VECTORS = 3, 48, 300, 4
PROJECTION = {"resampler": 1e-3, "projector": 1e-3}
STAGES: dict[str, tuple[dict[str, float], list[int]]] = {  # learning rates; passes through each layer's attention
    "pretrain": ({"backbone": 1e-3}, [3, 3, 3]),
    "align": (PROJECTION, [3, 3, 3]),
    "sft, encoder frozen": ({**PROJECTION, "backbone": 1e-3}, [3, 3, 3]),
    "sft, last layer and projection": ({**PROJECTION, "backbone.blocks.2": 1e-3}, [3, 3, 3]),
    "sft, last layer": ({"backbone.blocks.2": 1e-3}, [1, 1, 3]),
    "everything": ({**PROJECTION, "encoder": 1e-3, "backbone": 1e-3}, [3, 3, 3]),
}


def part(kind: str, name: str, options: dict[str, Any], **known: Any) -> Any:
    found = registry()
    return found.get(kind, name).load_build()(found.make_config(kind, name, options), **known)


def model_of(table: dict[str, float], *, vision: bool = True, adapters: LoRA | None = None) -> VLM:
    backbone = GPT(GPTConfig(depth=LAYERS, aspect=16, head_dim=8, max_positions=256), VOCABULARY)
    model = VLM(backbone)
    if vision:
        resampler = part("resampler", "perceiver", {"latents": VECTORS, "heads": 2}, in_dim=8, in_tokens=4)
        projector = part("projector", "mlp", {}, in_dim=8, out_dim=DIM)
        model = VLM(backbone, TinyEncoder(EncoderOptions()), resampler, projector)
    model.init_weights()
    apply_table(model, table, adapters)
    set_modes(model)
    return model


def batch_of(lengths: list[int], targets: int, images: int) -> Batch:
    """Documents whose last tokens are targets; the first ``images`` of them begin with a picture."""
    docs = [
        Rendered(
            ids=[1 + place % 200 for place in range(length)],
            loss_mask=[place >= length - targets for place in range(length)],
            image_spans=[(0, VECTORS)] if number < images else [],
            images=(square((9, 9, 9)),) if number < images else (),
            id=str(number),
        )
        for number, length in enumerate(lengths)
    ]
    for doc in docs:
        for first, count in doc.image_spans:
            doc.ids[first : first + count] = [0] * count
    batch = Batch.pack(docs)
    batch.pixels = torch.zeros(images, 3, 8, 8) if images else None
    return batch


def counted(model: VLM, batch: Batch) -> int:
    """What torch counts of a real step. The CPU's attention computes its scores a second time in the backward pass,
    a fifth of what it does there, which is recomputation and left out."""

    def without_recomputation(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return 2 * int(sdpa_flop_count(q, k, v))

    def forward(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    aten = torch.ops.aten  # of which torch 2.14 does not count either
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: without_recomputation,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        nll, _ = model.loss(batch)
        if nll.requires_grad:
            nll.backward()
    return int(counter.get_total_flops())


def unseen(batch: Batch, passes: list[int]) -> float:
    """What torch counts of attention that no query sees: the upper triangles, and padding in rectangles."""
    area = sum(docs * longest**2 for docs, longest in Buckets.of(batch.cu_seqlens).shapes)
    seen = sum(n**2 for n in batch.cu_seqlens.diff().tolist()) / 2
    return 4 * DIM * (area - seen) * sum(passes)


@pytest.mark.parametrize(("stage", "images"), [*((stage, 2) for stage in STAGES), ("align", 0)])
def test_it_is_what_torch_counts(stage: str, images: int) -> None:
    table, passes = STAGES[stage]
    model = model_of(table, vision=stage != "pretrain")
    images = 0 if stage == "pretrain" else images
    if not images and stage not in ("pretrain", "sft, encoder frozen", "everything"):  # nothing below trains
        passes = [1, 1, passes[2] if "backbone.blocks.2" in table else 1]
    batch = batch_of([70, 9, 33, 32], 7, images)
    expected = counted(model, batch) - unseen(batch, passes)
    assert StepFlops.measure(model)(batch, encoded=images) == pytest.approx(expected, rel=1e-9)


def test_adapters_cost_what_torch_counts() -> None:
    pytest.importorskip("peft")
    model = model_of({**PROJECTION, "backbone": 1e-3}, adapters=LoRA(rank=4))
    batch = batch_of([70, 9, 33, 32], 7, 2)
    expected = counted(model, batch) - unseen(batch, [3, 3, 3])
    assert StepFlops.measure(model)(batch, encoded=2) == pytest.approx(expected, rel=1e-9)


def test_the_formulas_of_the_field() -> None:
    """Per token 6 per weight where all trains; the last layer behind its attention works for targets only."""
    square_ = DIM * DIM
    body, last, head = 12 * LAYERS * square_, 9 * square_, DIM * VOCABULARY
    full = StepFlops.measure(model_of({"backbone": 1e-3}, vision=False)).text
    assert (full.token, full.pair, full.target) == (6 * (body - last), 6 * LAYERS * DIM, 6 * (last + head))
    align = StepFlops.measure(model_of(PROJECTION))
    assert (align.mixed.token, align.mixed.target) == (4 * (body - last), 4 * (last + head))
    assert (align.mixed.pair, align.text.pair) == (6 * LAYERS * DIM, 2 * LAYERS * DIM)
    assert (align.text.token, align.text.target) == (2 * (body - last), 2 * (last + head))  # nothing to learn there
    top = StepFlops.measure(model_of({"backbone.blocks.2": 1e-3}, vision=False)).text
    qkv = 3 * square_
    assert top.token == 2 * 12 * (LAYERS - 1) * square_ + 4 * qkv  # its input needs no gradient
    assert (top.pair, top.target) == (2 * (LAYERS - 1) * DIM + 6 * DIM, 6 * last + 4 * head)


def test_cached_features_cost_nothing() -> None:
    model = model_of(PROJECTION)
    batch = batch_of([20, 30], 3, 2)
    whole = StepFlops.measure(model)(batch, encoded=2)
    features = model.encode(batch.pixels)
    batch.pixels, batch.features = None, features
    assert counted(model, batch) - unseen(batch, [3, 3, 3]) == StepFlops.measure(model)(batch, encoded=0) < whole


def test_counting_leaves_the_model_alone() -> None:
    model = model_of({**PROJECTION, "encoder": 1e-3, "backbone": 1e-3})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    StepFlops.measure(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 311.9e12),
        ("NVIDIA L40S", 362.1e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_are_those_of_the_very_card(name: str, peak: float | None) -> None:
    assert peak_of_name(name) == peak


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu")) is None
