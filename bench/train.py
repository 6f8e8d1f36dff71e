"""Training beside the peers: the same made-up work, on one device, in one process; a table of both.

    python bench/train.py [--only NAME ...] [--steps 8] [--json FILE] [--nanochat FOLDER] [--set stage.compile=false]
    python bench/train.py --tiny        # every row in small, on a CPU, to see that it runs
    torchrun --standalone --nproc-per-node 2 bench/train.py --ours --only sft-256    # as much work on each device

Ours is the runner that every stage has, with clipping and metrics, on weights of bfloat16 whose other bits AdamW keeps
(`gpt` in float32, which computes in bfloat16); a peer
is a bare loop as its users write it. Weights and data are random. Both sides do the same samples in the same steps,
warmed up before, and the median step counts; where memory holds both they alternate in blocks, else one follows the
other. Each takes the largest micro-batch that fits. A row fails when a loss is not finite or a weight that should move
stays; then the exit code is 1.

Rows: a full fine-tune of Qwen2.5-1.5B; LLaVA-like SFT and alignment of it under SigLIP L/16-256 at 256 and 64 tokens a
picture (64: our perceiver, the peer's mean pooling), and SFT on lengths like those of the LLaVA mixture, padded and
grouped by length there, packed here; the encoder alone; pretraining of `gpt` at depth 12 and 20 with Muon beside
nanochat, whose package stands in FOLDER (`nanochat/gpt.py` and what it imports).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # before torch; for both sides

import torch
from sides import ceiling, measuring, peers, work
from sides.measuring import Side
from sides.ours import OurEncoder, Ours
from torch import nn

from components.backbones.checkpoints import CHECKPOINTS
from components.flops import peak_flops
from stages.depth import values_of_depth
from stages.distributed import Distributed

Build = Callable[[], Side]
DISTINCT = 4  # steps, which come round again
GIB = 2**30


@dataclass(frozen=True)
class Scale:
    """How large the rows are."""

    decoder: dict[str, Any]  # options of our backbone
    arch: dict[str, Any]  # its architecture, for the peer
    encoder: dict[str, Any]
    vision: dict[str, Any]  # the same tower as transformers' options
    timm: dict[str, Any]
    image_size: int
    few: int  # tokens of a picture, resampled
    length: int  # of a text document
    documents: int
    samples: int  # of an SFT step
    mixed: int
    captions: int
    prompt: int
    answer: int
    mixed_lengths: tuple[tuple[int, int], tuple[int, int]]
    pictures: int  # of an encoder batch
    calls: int
    depths: dict[int, int]  # named depth → depth
    vocabulary: int
    batch: int  # documents of a pretraining step
    device_batch: int

    @property
    def many(self) -> int:
        """Tokens of a picture, as the encoder gives them."""
        return (self.image_size // 16) ** 2


QWEN = "qwen2.5-1.5b"
REAL = Scale(
    decoder={"name": "decoder", "checkpoint": QWEN, "weights": "random"},
    arch=CHECKPOINTS[QWEN].architecture,
    encoder={"name": "siglip", "checkpoint": "vit_large_patch16_siglip_256", "weights": "random"},
    vision={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    timm={"model_name": "vit_large_patch16_siglip_256"},
    image_size=256,
    few=64,
    length=2048,
    documents=16,
    samples=32,
    mixed=128,
    captions=96,
    prompt=60,
    answer=200,
    mixed_lengths=((20, 80), (1, 150)),
    pictures=128,
    calls=10,
    depths={12: 12, 20: 20},
    vocabulary=32_768,
    batch=128,
    device_batch=32,
)
_SMALL = {"model_type": "qwen2", "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64,
          "vocab_size": 512, "max_positions": 128, "rope_theta": 1e6, "qkv_bias": True, "tie": True}  # fmt: skip
TINY = Scale(
    decoder={"name": "decoder", "weights": "random", "architecture": _SMALL},
    arch=_SMALL,
    encoder={"name": "siglip", "checkpoint": "vit_base_patch16_siglip_224", "image_size": 32, "feature_layer": 2,
             "weights": "random"},
    vision={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12},
    timm={"model_name": "vit_base_patch16_siglip_224", "img_size": 32, "depth": 2},
    image_size=32,
    few=1,
    length=32,
    documents=4,
    samples=4,
    mixed=8,
    captions=4,
    prompt=6,
    answer=8,
    mixed_lengths=((2, 8), (1, 15)),
    pictures=4,
    calls=1,
    depths={12: 2, 20: 3},
    vocabulary=512,
    batch=4,
    device_batch=2,
)  # fmt: skip


@dataclass
class Row:
    """One line of the table: the work, and how each side is built. Sizes of micro-batches are tried from the first."""

    work: str
    amount: float  # of a step
    unit: str
    ours: Build
    our_sizes: list[int]
    peer_name: str
    peer: Build | None
    peer_sizes: list[int] = field(default_factory=lambda: [1])
    together: bool = False  # memory holds both
    inspect: Callable[[Side], dict[str, Any]] = lambda side: {}  # of a side that has run
    finish: Callable[[dict[str, Any]], None] = lambda result: None


class Rows:
    """Builds the rows of the table by their names."""

    def __init__(self, options: argparse.Namespace, ranks: Distributed, folder: Path) -> None:
        self.options, self.ranks, self.device, self.folder = options, ranks, ranks.device, folder
        self.scale = TINY if options.tiny else REAL
        grow = ("documents", "samples", "mixed", "captions", "batch")  # as much for each rank
        self.scale = replace(self.scale, **{name: getattr(self.scale, name) * ranks.world for name in grow})
        self.dtype = "float32" if options.tiny else "bfloat16"
        self.named: dict[str, Callable[[], Row]] = {
            "qwen": self.qwen,
            "sft-256": lambda: self.sft(self.scale.many, "identity"),
            "sft-64": lambda: self.sft(self.scale.few, "perceiver"),
            "sft-mix": self.mix,
            "align-256": lambda: self.align(self.scale.many, "identity"),
            "align-64": lambda: self.align(self.scale.few, "perceiver"),
            "encoder": self.encoder,
            "gpt-12": lambda: self.gpt(12),
            "gpt-20": lambda: self.gpt(20),
            "gpt-12-windows": lambda: self.gpt(12, "SSSL"),
            "gpt-20-windows": lambda: self.gpt(20, "SSSL"),
        }

    def _ours(self, values: Mapping[str, Any], made: work.Work, vocabulary: int) -> Ours:
        """A run of ``values`` under what ``--set`` says of the kinds that are in it."""
        changed: dict[str, Any] = {"dtype": self.dtype, "optimizer": {"name": "adamw"}, **values}
        for key, value in self.options.set:
            kind, _, name = key.partition(".")
            if not name:
                changed[kind] = value
            elif kind in changed:
                changed[kind] = {**changed[kind], name: value}
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        return Ours(changed, made, vocabulary, self.ranks, folder)

    def _own_sizes(self, size: int, least: int) -> list[int]:
        """Tokens of our micro-batch to try: what ``--set`` says, else ``size`` and less."""
        said = dict(self.options.set).get("stage.micro_tokens")
        return halves(size, least) if said is None else [said]

    def _peer_sizes(self, size: int) -> list[int]:
        return [self.options.peer_micro] if self.options.peer_micro else halves(size)

    def qwen(self) -> Row:
        scale = self.scale
        made = work.texts(scale.documents, scale.length, scale.arch["vocab_size"] - 1, steps=DISTINCT)
        backbone = {**scale.decoder, "dtype": self.dtype}
        values = {"stage": {"name": "pretrain", "train": {"backbone": 1e-5}}, "backbone": backbone}
        row = Row(
            f"full fine-tune of {scale.documents} x {scale.length} tokens",
            made.tokens(),
            "tokens/s",
            lambda: self._ours(values, made, scale.vocabulary),
            self._own_sizes(round(made.tokens() / self.ranks.world), scale.length),
            peers.transformers_name(self.device),
            lambda: peers.Transformers(scale.arch, made, self.device),
            self._peer_sizes(scale.documents),
        )
        row.inspect, row.finish = self._products, lambda result: self._ceiling(row, result)
        return row

    def sft(self, tokens: int, resampler: str) -> Row:
        scale = self.scale
        lengths = (scale.prompt, scale.prompt), (scale.answer, scale.answer)
        made = self._questions(scale.samples, *lengths, tokens)
        what = f"SFT, {scale.prompt} prompt + {tokens} image + {scale.answer} answer tokens, {scale.samples} samples"
        return self._vision(what, made, resampler, "sft")

    def mix(self) -> Row:
        scale = self.scale
        made = self._questions(
            scale.mixed, *scale.mixed_lengths, scale.many, text_only=0.1, group=min(scale.samples, scale.mixed)
        )
        (low, high), (least, most) = scale.mixed_lengths
        what = f"SFT, {low}-{high} prompt, {least}-{most} answer tokens, 10 % without a picture, {scale.mixed} samples"
        return self._vision(what, made, "identity", "sft", largest=16_384)

    def align(self, tokens: int, resampler: str) -> Row:
        scale = self.scale
        prompt, answer = (6, 4) if self.options.tiny else (16, 24)
        made = self._questions(scale.captions, (prompt, prompt), (answer, answer), tokens)
        what = f"align, {prompt} prompt + {tokens} image + {answer} caption tokens, {scale.captions} samples"
        return self._vision(what, made, resampler, "align")

    def _questions(self, count: int, prompt: tuple[int, int], answer: tuple[int, int], tokens: int, **more: Any) -> Any:
        vocabulary = self.scale.arch["vocab_size"] - 1
        return work.questions(
            count, prompt, answer, vocabulary, tokens_per_image=tokens, image_size=self.scale.image_size,
            steps=DISTINCT, **more,
        )  # fmt: skip

    def _vision(self, what: str, made: work.Work, resampler: str, stage: str, largest: int = 10**9) -> Row:
        scale, frozen = self.scale, stage == "align"
        train = {"resampler": 1e-3, "projector": 1e-3, **({} if frozen else {"backbone": 1e-5})}
        values = {
            "stage": {"name": stage, "train": train, "features": "none"},
            "backbone": {**scale.decoder, "dtype": self.dtype},
            "encoder": scale.encoder,
            "resampler": {"name": resampler, **({"latents": scale.few} if resampler == "perceiver" else {})},
            "projector": {"name": "mlp"},
        }
        batch = scale.captions if frozen else scale.samples
        return Row(
            what,
            made.samples(),
            "samples/s",
            lambda: self._ours(values, made, scale.vocabulary),
            self._own_sizes(min(largest, round(made.tokens() / self.ranks.world)), max(made.lengths())),
            f"LLaVA of {peers.transformers_name(self.device)}",
            lambda: peers.Transformers(scale.arch, made, self.device, scale.vision, frozen=frozen),
            self._peer_sizes(batch),
            together=frozen,
        )

    def encoder(self) -> Row:
        scale = self.scale
        made = self._questions(1, (4, 4), (4, 4), scale.many)  # nothing of it is read but its pictures
        values = {
            "stage": {"name": "align", "train": {"projector": 1e-3}, "features": "none"},
            "backbone": {**TINY.decoder, "architecture": {**TINY.arch, "max_positions": 1024}},
            "encoder": scale.encoder,
            "resampler": {"name": "identity"},
            "projector": {"name": "mlp"},
        }
        assert made.pictures is not None
        pictures = made.pictures
        return Row(
            f"frozen encoder forward, {scale.pictures} pictures of {scale.image_size} pixels",
            scale.pictures * scale.calls,
            "pictures/s",
            lambda: OurEncoder(self._ours(values, made, scale.vocabulary), scale.pictures, scale.calls),
            [1],
            f"timm {peers.version('timm')}, torch.compile",
            lambda: peers.Timm(scale.timm, pictures, scale.pictures, scale.calls, self.device),
            together=True,
        )

    def gpt(self, named: int, windows: str = "L") -> Row:
        scale, depth = self.scale, self.scale.depths[named]
        made = work.texts(scale.batch, scale.length, scale.vocabulary, steps=DISTINCT)
        recipe = values_of_depth(depth, scale.vocabulary)
        values = {
            "stage": {"name": "pretrain", **{key: recipe["stage"][key] for key in ("train", "clip")}},
            "backbone": recipe["backbone"],
            "optimizer": recipe["optimizer"],
        }
        aspect, head = recipe["backbone"]["aspect"], recipe["backbone"]["head_dim"]
        folder = self.options.nanochat
        row = Row(
            f"pretrain step of gpt, depth {depth}, {scale.batch} x {scale.length} tokens, Muon",
            made.tokens(),
            "tokens/s",
            lambda: self._ours(values, made, scale.vocabulary),
            self._own_sizes(scale.device_batch * scale.length, scale.length),
            peers.nanochat_name(folder) if folder else "none: --nanochat FOLDER",
            (lambda: peers.Nanochat(folder, depth, made, scale.vocabulary, self.device, aspect, head, windows))
            if folder
            else None,
            self._peer_sizes(scale.device_batch),
            together=named == 12,
        )
        width = aspect * depth
        row.inspect = lambda side: {"flops_per_token": flops_per_token(side, width, scale.length)}
        row.finish = _equal_work
        return row

    def _products(self, side: Side) -> dict[str, Any]:
        """What the ceiling needs to know of our side."""
        if not isinstance(side, Ours):
            return {}
        return {"products": ceiling.products(side.loop.model.backbone)}

    def _ceiling(self, row: Row, result: dict[str, Any]) -> None:
        """Add what matrix products and attention alone would allow at our micro-batch."""
        scale, arch = self.scale, self.scale.arch
        dtype = peers.dtype_of(self.device)
        tokens = result["ours"]["facts"]["micro_tokens"]
        shapes = result["ours"].pop("products")
        documents = tokens // scale.length
        matrices = ceiling.products_seconds(shapes, tokens, self.device, dtype)
        layer, kernel = ceiling.attention_seconds(
            documents, scale.length, arch["heads"], arch["kv_heads"], arch["head_dim"], self.device, dtype
        )
        measuring.free()
        weights = sum(inputs * outputs * count for (inputs, outputs), count in shapes.items())
        needed = row.amount * 6 * (weights + arch["layers"] * arch["heads"] * arch["head_dim"] * scale.length)
        seconds = matrices + layer * arch["layers"]
        figure = documents * scale.length / seconds
        share = result["our_figure"] / figure
        result["ceiling"] = {
            "figure": figure,
            "share": share,
            "products_seconds": matrices,
            "attention_seconds": layer * arch["layers"],
            "kernel": kernel,
            "of_counted_flops": None if result["ours"]["flops"] is None else needed / result["ours"]["flops"],
            "products": {f"{inputs}x{outputs}": count for (inputs, outputs), count in shapes.items()},
        }
        result["notes"].append(f"products and {kernel} alone: {figure:,.0f} {row.unit}, of which ours is {share:.0%}")


def halves(size: int, least: int = 1) -> list[int]:
    """``size`` and its halves, down to an eighth and not below ``least``."""
    return sorted({max(least, -(-size // part)) for part in (1, 2, 4, 8)}, reverse=True)


def flops_per_token(side: Side, width: int, length: int) -> float:
    """6 for each weight of a linear layer, 12 for each channel and key that a query of a layer sees on average."""
    model = side.model()
    assert model is not None
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    windows = side.windows(model) if isinstance(side, peers.Nanochat) else [length] * model.backbone.n_layers
    return 6.0 * weights + 12.0 * width * sum(window - window * window / (2 * length) for window in windows)


def _equal_work(result: dict[str, Any]) -> None:
    if result.get("ratio") is None:
        return
    own, other = (result[side]["flops_per_token"] for side in ("ours", "peer"))
    result["ratio_at_equal_flops"] = result["ratio"] * own / other
    result["notes"].append(
        f"GFLOP per token: peer {other / 1e9:.3f}, ours {own / 1e9:.3f}; "
        f"ratio at equal FLOPs {result['ratio_at_equal_flops']:.2f}"
    )


class Run:
    """One side of a row, from building it to letting it go."""

    def __init__(self, name: str, build: Build, sizes: list[int], warm: int, device: torch.device) -> None:
        began, self.device = time.perf_counter(), device
        before = measuring.held(device)
        self.side: Side | None = build()
        size = measuring.settle(self.side, sizes, warm, device)
        self.own = measuring.held(device) - before
        model = self.side.model()
        self.checksums = {} if model is None else measuring.checksums(model)
        self.seconds: list[float] = []
        self.most: int | None = None
        say(f"{name}: ready after {time.perf_counter() - began:.0f} s, micro-batch {size}")

    def block(self, count: int) -> bool:
        """Steps that are timed, after one that fills the pipeline; True. Memory is this side's alone: what the other
        holds is taken off."""
        assert self.side is not None
        others = measuring.held(self.device) - self.own
        measuring.peak(self.device, reset=True)
        self.seconds += self.side.run(count + 1)[1:]
        found = measuring.peak(self.device)
        if found is not None:
            self.most = max(self.most or 0, found - others)
        return True

    def close(self, inspect: Callable[[Side], dict[str, Any]]) -> dict[str, Any]:
        """What was measured. Raises RuntimeError when the side did not really train."""
        assert self.side is not None
        measuring.check_learnt(self.side, self.checksums)
        found = {
            "seconds": self.seconds,
            "peak_bytes": self.most,
            "losses": self.side.losses,
            "facts": dict(self.side.facts()),
            **inspect(self.side),
        }
        if isinstance(self.side, Ours | OurEncoder):
            found["flops"] = self.side.flops(len(self.seconds))
        self.side = None
        measuring.free()
        return found


def measure(name: str, row: Row, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The row's result; with ``failed`` where a side did not get through, and then with what the other one did."""
    result: dict[str, Any] = {"name": name, "work": row.work, "peer_name": row.peer_name, "unit": row.unit, "notes": []}
    sides = {"peer": (None if options.ours else row.peer, row.peer_sizes), "ours": (row.ours, row.our_sizes)}
    present = {side: (build, sizes) for side, (build, sizes) in sides.items() if build is not None}
    failures: list[str] = []

    def attempt(side: str, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except Exception as error:
            failures.append(f"{side}: {reason(error)}")
        measuring.free()
        return None

    for group in [list(present)] if row.together else [[side] for side in present]:
        runs: dict[str, Run] = {}
        for side in group:
            run = attempt(side, lambda side=side: Run(f"{name}, {side}", *present[side], options.warm, device))
            runs |= {} if run is None else {side: run}
        size = max(1, options.steps // 4) if row.together else options.steps
        for count in (min(size, options.steps - done) for done in range(0, options.steps, size)):
            for side, run in list(runs.items()):
                if attempt(side, lambda run=run, count=count: run.block(count)) is None:
                    del runs[side]
        while runs:
            side, run = runs.popitem()
            if (found := attempt(side, lambda run=run: run.close(row.inspect))) is not None:
                result[side] = found
        run = None
        measuring.free(compiled=True)
    for side, key in (("ours", "our_figure"), ("peer", "peer_figure")):
        result[key] = row.amount / statistics.median(result[side]["seconds"]) if side in result else None
    result["ratio"] = None if None in (result["our_figure"], result["peer_figure"]) else (
        result["our_figure"] / result["peer_figure"]
    )  # fmt: skip
    highest, flops = peak_flops(device), result.get("ours", {}).get("flops")
    if highest is None or flops is None:
        result["mfu"] = None
    else:
        result["mfu"] = flops * result["our_figure"] / row.amount / (highest * options.world)
    if "ours" in result:
        attempt("afterwards", lambda: row.finish(result))
        result["ours"].pop("products", None)
    if failures:
        result["failed"] = "; ".join(failures)
    return result


def reason(error: Exception) -> str:
    """One line, after the whole of it on stderr."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| row | work | peer | peer's figure | ours | ratio | our MFU | peak memory, peer and ours | notes |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for result in results:
        if "work" not in result:
            lines.append(f"| {result['name']} | failed: {result['failed']} | | | | | | | |")
            continue
        memory = " / ".join(
            "-" if (most := result.get(side, {}).get("peak_bytes")) is None else f"{most / GIB:.1f} GiB"
            for side in ("peer", "ours")
        )
        sizes = "; ".join(
            ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in result[side]["facts"].items()
                if not key.startswith("time_")
            )
            for side in ("peer", "ours")
            if side in result
        )
        failed = [f"failed: {result['failed']}"] if "failed" in result else []  # fmt: skip
        lines.append(
            f"| {result['name']} | {result['work']} | {result['peer_name']} | {_figure(result['peer_figure'])} | "
            f"{_figure(result['our_figure'])} {result['unit']} | {_plain(result['ratio'], '.2f')} | "
            f"{_plain(result['mfu'], '.1%')} | {memory} | {'; '.join([*failed, *result['notes'], sizes])} |"
        )
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _plain(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def setting(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``, the value as JSON where it is that."""
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows, by name; default: all")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side")
    parser.add_argument("--warm", type=int, default=3, help="steps before")
    parser.add_argument("--json", type=Path, help="file for all figures, written after each row")
    parser.add_argument("--nanochat", type=Path, help="folder that holds nanochat's package")
    parser.add_argument("--set", type=setting, action="append", default=[], help="KEY=VALUE of our side's recipe")
    parser.add_argument(
        "--peer-micro", type=int, metavar="N", help="samples of the peer's micro-batch; default: what fits"
    )
    parser.add_argument("--ours", action="store_true", help="our side alone")
    parser.add_argument("--tiny", action="store_true", help="small shapes in float32 on the CPU, nothing compiled")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("this needs a CUDA device; --tiny runs on a CPU")
    if options.tiny:
        torch.compiler.set_stance("force_eager")
    ranks = Distributed.start("cpu" if options.tiny else "cuda")
    if ranks.world > 1 and not options.ours:
        parser.error("a peer runs in one process: several need --ours")
    device, options.world = ranks.device, ranks.world
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "python": platform.python_version(),
        **{name: peers.version(name) for name in ("torch", "transformers", "liger-kernel", "timm", "triton")},
    }
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows(options, ranks, Path(folder))
        names = options.only or list(rows.named)
        if unknown := [name for name in names if name not in rows.named]:
            parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(rows.named)}")
        for name in names:
            try:
                results.append(measure(name, rows.named[name](), options, device))
            except Exception as error:
                results.append({"name": name, "failed": reason(error)})
            say(table(results[-1:]).splitlines()[-1])
            measuring.free(compiled=True)
            if options.json and ranks.is_main:
                options.json.write_text(json.dumps({"machine": machine, "rows": results}, indent=1, allow_nan=False))
    if ranks.is_main:
        print(", ".join(f"{key} {value}" for key, value in machine.items()) + f", {ranks.world} processes\n")
        print(table(results))
    ranks.stop()
    return 1 if any("failed" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
