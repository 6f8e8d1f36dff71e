"""The training loop: samples and seed decide what is learnt, a resumed run is the same run, failures stop it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import (
    EncoderOptions,
    TinyEncoder,
    features_of,
    interruption,
    registry,
    square,
    values,
    write_tokenizer,
)
from safetensors.torch import load_file
from torch import Tensor

from components.batch import Batch
from components.encoders.config import EfficientNetLite
from components.encoders.efficientnet_lite import build as build_efficientnet
from components.trackers.jsonl import read_metrics
from ghostvis_plugins import encoder
from ghostvis_plugins.errors import ConfigError, DataError, GhostVisError, UnavailableError
from stages.context import RunContext
from stages.data import Drawn, Stream
from stages.determinism import deterministic, step_seed
from stages.distributed import Distributed
from stages.features import FeatureCache
from stages.ledger import BadSample
from stages.loader import Collator, Loader
from stages.loop import MEASURED, Loop
from stages.optim import set_modes
from stages.runner import run
from stages.start import open_start
from stages.validation import Validation

ROOT = Path(__file__).resolve().parents[1]
EVERYTHING = {"projector": 1e-2, "backbone": 1e-2}


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Metrics without what hangs on the machine."""
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in read_metrics(run_dir)]


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def assert_same_weights(a: Path, b: Path, rtol: float = 0.0) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=rtol, atol=rtol)


def one_by_one(encoder: Any, samples: list[Drawn]) -> tuple[list[Batch], list[BadSample]]:
    """Each sample as a batch of its own, and those that make none."""
    made = [Collator(encoder, None)([drawn]) for drawn in samples]
    return [batch for batch, _, _ in made if batch is not None], [entry for _, _, bad in made for entry in bad]


def test_it_learns(start: Path, tmp_path: Path) -> None:
    given = values(start, stage__steps=100, stage__train={"projector": 3e-2, "backbone": 3e-2})
    run(given, registry(), tmp_path / "a")
    metrics = rows(tmp_path / "a")
    assert [row["step"] for row in metrics] == list(range(1, 101))
    assert metrics[0]["loss"] == pytest.approx(torch.log(torch.tensor(320.0)).item(), rel=0.05)
    assert metrics[-1]["loss"] < 2
    assert metrics[-1]["val_accuracy/colours"] >= 0.75


def test_micro_batches_do_not_change_what_is_learnt(start: Path, tmp_path: Path) -> None:
    for micro in (40, 100, 4000):
        given = values(start, stage__micro_tokens=micro, stage__pack_tokens=200, stage__train=EVERYTHING)
        run(given, registry(), tmp_path / str(micro))
    whole = rows(tmp_path / "4000")
    for micro in ("40", "100"):
        for row, other in zip(rows(tmp_path / micro), whole, strict=True):
            assert row["data_hash"] == other["data_hash"]
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert_same_weights(tmp_path / micro, tmp_path / "4000", rtol=1e-4)


def test_one_step_is_the_mean_over_all_targets(start: Path, tmp_path: Path) -> None:
    """Against the model itself, sample by sample, and for the gradient's norm as well."""
    given = values(start, stage__steps=1, stage__train=EVERYTHING, stage__eval_samples=0)
    run(given, registry(), tmp_path / "a")
    (row,) = rows(tmp_path / "a")
    context = RunContext(given, registry(), tmp_path, Distributed())
    model = open_start(context, vision=True).model
    tokenizer = open_start(context, vision=True).tokenizer
    model.requires_grad_(True).encoder.requires_grad_(False)  # type: ignore[union-attr]
    set_modes(model)
    plan = Stream(context.datasets("train"), tokenizer, 4, seed=7, limit=100).next_step(200, 100)
    batches, _ = one_by_one(model.encoder, plan.samples)
    assert len(batches) > 5
    nll, targets = zip(*map(model.loss, batches), strict=True)
    mean = torch.stack(nll).sum() / sum(targets)
    mean.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert row["loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert row["target_tokens"] == sum(targets)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_resumed_run_is_the_same_run(start: Path, tmp_path: Path, asynchronous: bool) -> None:
    """Twelve steps, and eight and six after an interruption: bit for bit, with metrics, data order and dropout; also
    where checkpoints of the latter are written while training goes on."""
    given = values(
        start,
        encoder__dropout=0.3,
        stage__features="none",
        stage__train={**EVERYTHING, "encoder": 1e-2},
        stage__checkpoint_every=3,
        stage__eval_every=4,
        stage__keep_checkpoints=9,
    )
    run(given, registry(), tmp_path / "whole")
    given["stage"]["checkpoint_async"] = asynchronous
    stopped = {**given, "tracker": {"name": "interrupt"}}
    with pytest.raises(KeyboardInterrupt):
        run(stopped, registry(interruption(8)), tmp_path / "parts")
    run(given, registry(), tmp_path / "parts", resume=True)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        files = [tmp_path / part / "checkpoints" / "step_12" / name for part in ("parts", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_process_is_continued_by_another(start: Path, tmp_path: Path) -> None:
    """The one was far ahead with its data when it died, the other never is: the stream is the same."""
    given = values(start, stage__train=EVERYTHING, stage__checkpoint_every=4, stage__features="memory")
    run(given, registry(), tmp_path / "whole")
    ahead = {**given["stage"], "workers": 3, "prefetch": 9}
    killed = {**given, "stage": ahead, "tracker": {"name": "killer", "at": 7}}
    child = subprocess.run(
        [sys.executable, "tests/miniature.py", json.dumps([[str(tmp_path / "parts"), killed, False]])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=300,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert rows(tmp_path / "parts")[-1]["step"] == 7
    alone = {**given, "stage": {**given["stage"], "workers": 0, "prefetch": 0}}
    run(alone, registry(), tmp_path / "parts", resume=True)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


def test_resume_passes_over_a_damaged_checkpoint(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = values(start, stage__checkpoint_every=4, stage__eval_samples=0, stage__keep_checkpoints=3)
    run(given, registry(), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
    for step in (8, 12):
        path = tmp_path / "hurt" / "checkpoints" / f"step_{step}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    run(given, registry(), tmp_path / "hurt", resume=True)
    assert rows(tmp_path / "hurt") == rows(tmp_path / "whole")
    assert_same_weights(tmp_path / "hurt", tmp_path / "whole")
    said = capsys.readouterr().err
    assert "step_8 is not used" in said
    assert "step_12 is not used" in said


def test_resume_without_a_checkpoint_starts_over_and_says_so(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = values(start, stage__steps=3, stage__eval_samples=0)
    with pytest.raises(KeyboardInterrupt):
        run({**given, "tracker": {"name": "interrupt"}}, registry(interruption(2)), tmp_path / "a")
    assert len(rows(tmp_path / "a")) == 2
    run(given, registry(), tmp_path / "a", resume=True)
    assert [row["step"] for row in rows(tmp_path / "a")] == [1, 2, 3]
    assert "holds no usable checkpoint" in capsys.readouterr().err


def test_resume_refuses_other_data(start: Path, tmp_path: Path) -> None:
    given = values(start, stage__steps=2, stage__eval_samples=0)
    run(given, registry(), tmp_path / "a")
    with pytest.raises(ConfigError, match="seed was 7, and now is 8"):
        run({**given, "seed": 8}, registry(), tmp_path / "a", resume=True)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(given, registry(), tmp_path / "a")


def test_resume_refuses_data_that_grew_or_shrank(start: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(f'{{"text": "the red fox sees leaf number {n}"}}\n' for n in range(40)))
    given = values(start, stage__steps=2, stage__eval_samples=0)
    given["dataset"] = {"jsonl": {"path": str(file), "weight": 1.0}, "colours": {"weight": 1.0}}
    run(given, registry(), tmp_path / "a")
    with file.open("a") as more:
        more.write('{"text": "one more"}\n')
    with pytest.raises(ConfigError, match="samples was"):
        run(given, registry(), tmp_path / "a", resume=True)


def test_unusable_samples_neither_end_a_finished_run_nor_hide_in_validation(start: Path, tmp_path: Path) -> None:
    given = values(start, dataset__colours__mute=30, stage__max_bad_fraction=1.0, stage__show_samples=2, stage__steps=3)
    run(given, registry(), tmp_path / "runs" / "a")
    assert (tmp_path / "runs" / "latest").exists()
    assert "What colour is it?" in (tmp_path / "runs" / "a" / "report.md").read_text()
    lines = map(json.loads, (tmp_path / "runs" / "a" / "bad_samples.jsonl").read_text().splitlines())
    assert sum(line["id"].startswith("colours/validation/") for line in lines) == 30


def test_seeds_differ_by_step_and_rank() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(5) for step in range(20) for rank in range(4)}
    assert len(seeds) == 400


def test_what_cannot_be_deterministic_says_so() -> None:
    with deterministic(enabled=True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UnavailableError, match=r"stage\.deterministic: put_ does not"), deterministic(enabled=True):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_bad_samples_are_left_out_counted_and_named(start: Path, tmp_path: Path) -> None:
    given = values(
        start,
        dataset__colours__broken=3,
        dataset__colours__mute=2,
        stage__max_bad_fraction=0.1,
        stage__steps=20,
        stage__eval_samples=0,
    )
    run(given, registry(), tmp_path / "a")
    lines = [json.loads(line) for line in (tmp_path / "a" / "bad_samples.jsonl").read_text().splitlines()]
    found = {entry["id"]: entry["reason"] for entry in lines}
    assert found.keys() == {f"colours/train/{i}" for i in range(5)}
    assert "nothing to learn" in found["colours/train/4"]
    assert [entry["index"] for entry in sorted(lines, key=lambda e: e["id"])] == [0, 1, 2, 3, 4]
    assert rows(tmp_path / "a")[-1]["bad_samples"] == 5


def test_the_loss_is_the_mean_over_what_is_left(start: Path, tmp_path: Path) -> None:
    """A picture that cannot be read takes its targets out of the divisor, too."""
    only = {"colours": {"broken": 10}}
    given = values(
        start,
        dataset=only,
        stage__steps=1,
        stage__train=EVERYTHING,
        stage__features="none",
        stage__eval_samples=0,
        stage__max_bad_fraction=1.0,
        stage__batch_tokens=2000,
    )
    run(given, registry(), tmp_path / "a")
    (row,) = rows(tmp_path / "a")
    lines = (tmp_path / "a" / "bad_samples.jsonl").read_text().splitlines()
    assert len(lines) == 10
    context = RunContext(given, registry(), tmp_path, Distributed())
    begun = open_start(context, vision=True)
    plan = Stream(context.datasets("train"), begun.tokenizer, 4, seed=7, limit=100).next_step(2000, 100)
    batches, bad = one_by_one(begun.model.encoder, plan.samples)
    assert len({entry.id for entry in bad}) == 10
    begun.model.requires_grad_(True).encoder.requires_grad_(False)  # type: ignore[union-attr]
    set_modes(begun.model)
    nll, targets = zip(*map(begun.model.loss, batches), strict=True)
    mean = torch.stack(nll).sum() / sum(targets)
    mean.backward()
    norm = torch.stack([p.grad.norm() for p in begun.model.parameters() if p.grad is not None]).norm()
    assert row["target_tokens"] == sum(targets) < plan.targets
    assert row["loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_too_many_bad_samples_stop_the_run(start: Path, tmp_path: Path) -> None:
    given = values(start, dataset__colours__broken=3, stage__max_bad_fraction=0.03, stage__steps=40)
    with pytest.raises(DataError, match=r"unusable of 80 training samples, and 2 are allowed\n +3 .*not an image"):
        run(given, registry(), tmp_path / "a")
    assert not (tmp_path / "a" / "model").exists()


def test_a_loss_that_is_no_number_stops_with_the_samples(start: Path, tmp_path: Path) -> None:
    given = values(start, stage__train={"projector": 1e30, "backbone": 1e30}, stage__clip=0.0, stage__warmup=0)
    with pytest.raises(GhostVisError, match=r"(?s)step \d+: loss .*(colours|texts)/train/.*4 such steps in a row"):
        run(given, registry(), tmp_path / "a")
    incidents = [json.loads(line) for line in (tmp_path / "a" / "incidents.jsonl").read_text().splitlines()]
    assert [entry["step"] - incidents[0]["step"] for entry in incidents] == [0, 1, 2, 3]
    assert all(len(entry["samples"]) > 5 for entry in incidents)
    assert not (tmp_path / "a" / "model").exists()


def test_the_mixture_is_weighted_by_answer_tokens(start: Path, tmp_path: Path) -> None:
    """Weights 2 : 1 hold for target tokens, though an answer has 2 tokens and a text has 20."""
    given = values(start, stage__steps=1)
    context = RunContext(given, registry(), tmp_path, Distributed())
    begun = open_start(context, vision=True)
    stream = Stream(context.datasets("train"), begun.tokenizer, 4, seed=7, limit=100)
    tokens = {"colours": 0, "texts": 0}
    for drawn in stream.next_step(20_000, 20_000).samples:
        tokens[drawn.source] += drawn.rendered.targets
    assert tokens["colours"] / tokens["texts"] == pytest.approx(2, rel=0.03)
    assert tokens == {name: taken.targets for name, taken in stream.state.taken.items()}


def test_validation_is_the_models_own_loss(start: Path, tmp_path: Path) -> None:
    given = values(start, stage__steps=1, stage__train=EVERYTHING, stage__eval_samples=30)
    model_dir = run(given, registry(), tmp_path / "a")
    (row,) = rows(tmp_path / "a")
    from components.weights import load_model

    loaded = load_model(model_dir, registry())
    context = RunContext(given, registry(), tmp_path, Distributed())
    plan = Stream(context.datasets("validation"), loaded.tokenizer, 4, seed=0, limit=100).first(30)
    batches, _ = one_by_one(loaded.model.encoder, plan.samples)
    with torch.no_grad():
        nll, targets = zip(*map(loaded.model.loss, batches), strict=True)
        right = sum(_right(loaded.model, batch) for batch in batches)
    assert row["val_loss"] == pytest.approx((torch.stack(nll).sum() / sum(targets)).item(), rel=1e-4)
    assert row["val_accuracy"] == pytest.approx(right / sum(targets), rel=1e-6)


def _right(model: Any, batch: Batch) -> int:
    logits = model.backbone.logits(model.hidden(batch))[batch.target_rows]
    return int((logits.argmax(-1) == batch.ids[batch.target_rows + 1]).sum())


def test_the_best_weights_can_be_exported(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation says that step 4 is the best: it is kept beside the newest, and exported."""
    losses = iter([5.0, 4.0, 3.0, 1.0, *[2.0] * 8])

    class Scripted(Validation):
        def __call__(self, *args: Any) -> Any:
            metrics, bad = super().__call__(*args)
            return {**metrics, "val_loss": next(losses)}, bad

    monkeypatch.setattr("stages.train.Validation", Scripted)
    given = values(start, stage__eval_every=1, stage__keep_checkpoints=1, stage__export="best")
    run(given, registry(), tmp_path / "a")
    kept = {folder.name for folder in (tmp_path / "a" / "checkpoints").iterdir()}
    assert kept == {"step_4", "step_12"}
    best, last = (load_file(tmp_path / "a" / "checkpoints" / name / "model.safetensors") for name in sorted(kept)[::-1])
    exported = weights(tmp_path / "a")
    assert all(torch.equal(best[name], exported[name]) for name in best)
    assert any(not torch.equal(last[name], exported[name]) for name in last)


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_kept_features_equal_fresh_ones(
    start: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to float16; and with a memory of nothing, with files of an earlier run, and with a damaged file."""
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))
    for name, features in (("fresh", "none"), ("kept", mode), ("again", mode)):
        given = values(start, stage__features=features, stage__train=EVERYTHING, stage__encode_batch=3)
        if name == "again":
            monkeypatch.setattr("stages.train.FeatureCache", _small())
            for path in list((tmp_path / "cache").rglob("*.npy"))[:2]:
                path.write_bytes(path.read_bytes()[:40])
        if name == "again" and mode == "disk":
            with pytest.warns(UserWarning, match="encoded again"):
                run(given, registry(), tmp_path / name)
        else:
            run(given, registry(), tmp_path / name)
    for row, fresh in zip(rows(tmp_path / "kept"), rows(tmp_path / "fresh"), strict=True):
        assert row["data_hash"] == fresh["data_hash"]
        assert row["loss"] == pytest.approx(fresh["loss"], rel=2e-3)
    assert rows(tmp_path / "again") == rows(tmp_path / "kept")
    assert bool(list((tmp_path / "cache").rglob("*.npy"))) == (mode == "disk")


def _small() -> Any:
    def build(*args: Any, **kwargs: Any) -> FeatureCache:
        return FeatureCache(*args, **{**kwargs, "memory_bytes": 200})

    return build


def test_features_do_not_depend_on_the_company() -> None:
    """Bit for bit, with the convolutions of the real encoder: its kernels differ between batch sizes."""
    torch.manual_seed(0)
    net = build_efficientnet(EfficientNetLite(image_size=64, weights="random")).requires_grad_(False)
    net.init_weights()

    def features(shades: list[int]) -> list[Any]:
        cache = FeatureCache(net, {}, on_disk=False, memory_bytes=2**20, encode_batch=32, device=torch.device("cpu"))
        return features_of(cache, [square((200, 100, 50), shade) for shade in shades])

    alone = features([31])[0]
    for before, after in ((0, 1), (5, 2), (31, 0), (40, 3)):
        company = features([*range(32, 32 + before), 31, *range(80, 80 + after)])
        assert torch.equal(company[before], alone)


def test_features_of_an_encoder_that_trains_are_refused(start: Path, tmp_path: Path) -> None:
    given = values(start, stage__features="memory", stage__train={"encoder": 1e-3})
    with pytest.raises(ConfigError, match="this run trains it"):
        run(given, registry(), tmp_path / "a")
    given["stage"]["features"] = "none"
    run(given, registry(), tmp_path / "b")


def test_a_frozen_tensor_that_moves_is_an_error(start: Path, tmp_path: Path) -> None:
    class Restless(TinyEncoder):
        """Counts its calls in a buffer, although it is frozen."""

        def __init__(self, config: EncoderOptions) -> None:
            super().__init__(config)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, pixels: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(pixels)

    given = values(start, encoder__name="restless", stage__steps=1)
    with pytest.raises(GhostVisError, match="a frozen tensor changed"):
        run(given, registry(encoder("restless", config=EncoderOptions, build=Restless)), tmp_path / "a")
    assert not (tmp_path / "a" / "model").exists()


AHEAD = {"stage__features": "none", "stage__train": {"projector": 1e-2}, "stage__checkpoint_every": 2}


def test_encoding_ahead_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of the next step are encoded before the end of this one: same losses, operations and weights."""
    given = values(write_tokenizer(tmp_path / "tokenizer"), **AHEAD)
    run(given, registry(), tmp_path / "ahead")
    prepared = Loop.__post_init__

    def late(loop: Loop) -> None:
        prepared(loop)
        assert loop.encodes_ahead
        loop.encodes_ahead = False

    monkeypatch.setattr(Loop, "__post_init__", late)
    run(given, registry(), tmp_path / "late")
    unmeasured = MEASURED - {"flops"}
    first, second = (
        [{key: value for key, value in row.items() if key not in unmeasured} for row in read_metrics(tmp_path / name)]
        for name in ("ahead", "late")
    )
    assert first == second
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("ahead", "late")]
    assert weights[0] == weights[1]


def test_an_error_of_the_next_step_leaves_this_one_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ask = iter(range(100)), Loader.next_step

    def fail(loader: Loader) -> Any:
        if next(asked) == 4:
            raise DataError("step 5 cannot be planned")
        return ask(loader)

    monkeypatch.setattr(Loader, "next_step", fail)
    given = values(write_tokenizer(tmp_path / "tokenizer"), **AHEAD)
    with pytest.raises(DataError, match="step 5"):
        run(given, registry(), tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 4
    assert (tmp_path / "run/checkpoints/step_4").is_dir()
