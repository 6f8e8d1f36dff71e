"""The native engine: every shortcut (cache, batch, stream, shared prompt) gives what the plain model gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from components.batch import Batch
from components.engines import native
from components.engines.config import Native as Config
from components.engines.native import NativeEngine
from components.engines.sampling import choose, uniforms
from components.images import decode
from components.rendering import render, render_prompt
from components.tokenizers import Tokenizer
from components.vlm import VLM
from ghostvis_plugins import ConfigError, DataError
from ghostvis_plugins.protocols import Engine
from ghostvis_plugins.types import Conversation, Generation, Image, assistant, user

GREEDY = Generation(max_new_tokens=12)
SAMPLED = Generation(max_new_tokens=12, temperature=1.0, top_k=40, top_p=0.95, seed=3)


@pytest.fixture
def prompts(make_picture: Callable[[int], Image]) -> list[Conversation]:
    """Ragged: no picture, one, several, a longer dialogue."""
    a, b, c = (make_picture(n) for n in range(3))
    return [
        Conversation((user("what is blue?"),), id="text"),
        Conversation((user(a, "what is the colour of the shape?"),), id="one"),
        Conversation((user("is", b, "like", c, "or like", a, "?"),), id="three"),
        Conversation((user(b, "cat?"), assistant("no"), user("dog?"), assistant("it looks like it"), user("yes"))),
        Conversation((user(c, "?"),), id="short"),
    ]


@pytest.fixture
def questions(make_picture: Callable[[int], Image]) -> list[Conversation]:
    """Several about each of two pictures, one with a second picture: their beginnings are run once."""
    a, b = make_picture(0), make_picture(1)
    texts = ["what is it?", "red?", "is the shape blue or green?", "cat", "what"]
    about = [Conversation((user(picture, text),)) for text in texts for picture in (a, b)]
    return [*about, Conversation((user(a, "like", b, "?"),))]


@pytest.fixture
def make(tiny_model: VLM, tiny_tokenizer: Tokenizer) -> Callable[..., NativeEngine]:
    return lambda **options: native.build(Config(**options), model=tiny_model, tokenizer=tiny_tokenizer)


@torch.no_grad()
def distributions(model: VLM, tokenizer: Tokenizer, prompt: Conversation, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities ``[len(ids), V]`` of each next token behind ``prompt``: one forward pass, no cache."""
    rendered = render_prompt(prompt, tokenizer, model.tokens_per_image)
    whole = replace(rendered, ids=[*rendered.ids, *ids], loss_mask=[*rendered.loss_mask, *[True] * len(ids)])
    batch = Batch.pack([whole])
    if batch.images:
        batch.pixels = torch.stack([model.encoder.preprocess(decode(image)) for image in batch.images])
    return model.backbone.logits(model.hidden(batch)).log_softmax(-1)[len(rendered.ids) - 1 : -1]


def full_logprobs(model: VLM, tokenizer: Tokenizer, prompt: Conversation, ids: tuple[int, ...]) -> list[float]:
    """Those of ``ids`` themselves."""
    return [float(row[token]) for row, token in zip(distributions(model, tokenizer, prompt, ids), ids, strict=True)]


def test_it_is_an_engine(make: Callable[..., NativeEngine]) -> None:
    assert isinstance(make(), Engine)
    assert make().capabilities == {"images", "score", "stream", "batch", "abort"}


@pytest.mark.parametrize("generation", [GREEDY, SAMPLED])
def test_cached_decoding_equals_the_full_pass(
    make: Callable[..., NativeEngine],
    tiny_model: VLM,
    tiny_tokenizer: Tokenizer,
    prompts: list[Conversation],
    generation: Generation,
) -> None:
    completions = make(rows=3).generate(prompts, generation)
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = full_logprobs(tiny_model, tiny_tokenizer, prompt, completion.ids)
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)
        assert completion.text == tiny_tokenizer.decode(completion.ids)


def test_questions_about_the_same_pictures_share_their_beginning(
    make: Callable[..., NativeEngine],
    tiny_model: VLM,
    tiny_tokenizer: Tokenizer,
    questions: list[Conversation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run: list[int] = []
    hidden = tiny_model.hidden
    monkeypatch.setattr(tiny_model, "hidden", lambda batch, *a, **k: run.append(len(batch)) or hidden(batch, *a, **k))
    completions = make().generate(questions, GREEDY)
    lengths = [len(render_prompt(q, tiny_tokenizer, tiny_model.tokens_per_image).ids) for q in questions]
    beginning = len(render_prompt(questions[0], tiny_tokenizer, 4).ids[: 6 + 4])
    assert sum(run) == sum(lengths) - (len(questions) - 2) * beginning
    for question, completion in zip(questions, completions, strict=True):
        expected = full_logprobs(tiny_model, tiny_tokenizer, question, completion.ids)
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)
    assert [c.ids for c in make(rows=1).generate(questions, GREEDY)] == [c.ids for c in completions]


def test_greedy_takes_the_likeliest_token_of_the_full_pass(
    make: Callable[..., NativeEngine], tiny_model: VLM, tiny_tokenizer: Tokenizer, prompts: list[Conversation]
) -> None:
    for prompt, completion in zip(prompts, make().generate(prompts, GREEDY), strict=True):
        every = distributions(tiny_model, tiny_tokenizer, prompt, completion.ids)
        every[:, tiny_tokenizer.image] = -math.inf
        assert completion.logprobs == pytest.approx(every.amax(-1).tolist(), abs=1e-5)


@pytest.mark.parametrize("generation", [GREEDY, SAMPLED])
def test_batching_and_order_do_not_change_answers(
    make: Callable[..., NativeEngine], prompts: list[Conversation], generation: Generation
) -> None:
    together = make(rows=64).generate(prompts, generation)
    assert len({completion.ids for completion in together}) > 1
    for rows in (1, 2):
        assert [c.ids for c in make(rows=rows, encode_batch=1).generate(prompts, generation)] == [
            c.ids for c in together
        ]
    if generation is GREEDY:
        assert [c.ids for c in make().generate(prompts[::-1], generation)] == [c.ids for c in together[::-1]]


@pytest.mark.parametrize("generation", [GREEDY, SAMPLED])
def test_streaming_equals_generating(
    make: Callable[..., NativeEngine], prompts: list[Conversation], generation: Generation
) -> None:
    for prompt in prompts:
        engine = make()
        pieces = list(engine.stream(prompt, generation))
        assert "".join(pieces) == engine.generate([prompt], generation)[0].text
        assert all(pieces)


def test_answers_end_at_their_end_token_or_their_limit(
    make: Callable[..., NativeEngine], tiny_model: VLM, tiny_tokenizer: Tokenizer, prompts: list[Conversation]
) -> None:
    engine = make()
    assert {c.finish_reason for c in engine.generate(prompts, Generation(max_new_tokens=1))} == {"length"}
    for stop in (tiny_tokenizer.im_end, tiny_tokenizer.eos):
        with torch.no_grad():
            kept = tiny_model.backbone.head.weight.clone()
            second = engine.generate(prompts[:1], GREEDY)[0].ids[1]
            tiny_model.backbone.head.weight[[stop, second]] = tiny_model.backbone.head.weight[[second, stop]]
        completion = engine.generate(prompts[:1], GREEDY)[0]
        assert (completion.finish_reason, completion.ids.index(stop)) == ("stop", len(completion.ids) - 1)
        assert len(completion.logprobs) == len(completion.ids)
        with torch.no_grad():
            tiny_model.backbone.head.weight.copy_(kept)


def test_an_answer_never_holds_the_placeholder_of_a_picture(
    make: Callable[..., NativeEngine], tiny_model: VLM, tiny_tokenizer: Tokenizer, prompts: list[Conversation]
) -> None:
    likely = [completion.ids[0] for completion in make().generate(prompts, GREEDY)]
    with torch.no_grad():
        tiny_model.backbone.head.weight[tiny_tokenizer.image] = 1.5 * tiny_model.backbone.head.weight[likely[0]]
    for generation in (GREEDY, replace(GREEDY, temperature=1.0)):
        completions = make().generate(prompts, generation)
        assert all(tiny_tokenizer.image not in completion.ids for completion in completions)
        expected = full_logprobs(tiny_model, tiny_tokenizer, prompts[0], completions[0].ids)
        assert completions[0].logprobs == pytest.approx(expected, abs=1e-5), "of the untruncated distribution"


def test_score_is_the_loss_of_the_whole_conversation(
    make: Callable[..., NativeEngine], tiny_model: VLM, tiny_tokenizer: Tokenizer, prompts: list[Conversation]
) -> None:
    answers = ["red", "", "a blue square", "it looks like a dog? 漢字", "cat"]
    for engine in (make(), make(rows=2)):
        for prompt in prompts:
            scores = engine.score(prompt, answers)
            for answer, score in zip(answers, scores, strict=True):
                whole = replace(prompt, messages=(*prompt.messages, assistant(answer)))
                batch = Batch.pack([render(whole, tiny_tokenizer, tiny_model.tokens_per_image)])
                before = sum(m.role == "assistant" for m in prompt.messages)
                ids = (*tiny_tokenizer.encode(answer), tiny_tokenizer.im_end)
                expected = full_logprobs(tiny_model, tiny_tokenizer, prompt, ids)
                assert score.tokens == len(ids)
                assert score.logprob == pytest.approx(sum(expected), abs=1e-5 * len(ids))
                if not before:
                    if batch.images:
                        pixels = [tiny_model.encoder.preprocess(decode(image)) for image in batch.images]
                        batch.pixels = torch.stack(pixels)
                    loss, count = tiny_model.loss(batch)
                    assert (count, loss.item()) == (score.tokens, pytest.approx(-score.logprob, abs=1e-4))
    assert make().score(prompts[0], []) == []


def test_each_distinct_picture_is_encoded_once(
    make: Callable[..., NativeEngine], tiny_model: VLM, prompts: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = tiny_model.encode
    monkeypatch.setattr(tiny_model, "encode", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    engine = make(rows=1)
    engine.generate(prompts, GREEDY)
    engine.score(prompts[1], ["red", "blue"])
    list(engine.stream(prompts[2], GREEDY))
    assert sum(seen) == 3
    small = make(rows=1, image_cache=1)
    answers = [completion.ids for completion in small.generate(prompts, GREEDY)]
    assert len(small._vectors) == 1
    assert answers == [completion.ids for completion in engine.generate(prompts, GREEDY)]


def test_nothing_stale_is_used_after_training(
    make: Callable[..., NativeEngine], tiny_model: VLM, tiny_tokenizer: Tokenizer, prompts: list[Conversation]
) -> None:
    engine = make()
    before = engine.score(prompts[1], ["red"])[0].logprob
    optimizer = torch.optim.AdamW(tiny_model.projector.parameters(), lr=0.1, fused=True)
    for parameter in tiny_model.projector.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    after = engine.score(prompts[1], ["red"])[0]
    assert abs(after.logprob - before) > 1e-3
    ids = (*tiny_tokenizer.encode("red"), tiny_tokenizer.im_end)
    assert after.logprob == pytest.approx(sum(full_logprobs(tiny_model, tiny_tokenizer, prompts[1], ids)), abs=1e-5)


def test_training_mode_comes_back(
    make: Callable[..., NativeEngine], tiny_model: VLM, prompts: list[Conversation]
) -> None:
    tiny_model.train()
    make().generate(prompts[:1], GREEDY)
    assert tiny_model.training
    assert tiny_model.backbone.training


def test_abort_stops_one_stream_at_the_next_token(
    make: Callable[..., NativeEngine], prompts: list[Conversation]
) -> None:
    engine = make()
    long = Generation(max_new_tokens=60, temperature=1.0)
    whole = "".join(engine.stream(prompts[0], long))
    stream, other = (engine.stream(prompts[0], long, request_id=name) for name in "ab")
    first = next(stream)
    engine.abort("a")
    engine.abort("never heard of")
    rest = "".join(stream)
    assert whole.startswith(first + rest)
    assert len(first + rest) < len(whole) / 2
    assert "".join(other) == whole
    assert "".join(engine.stream(prompts[0], long, request_id="a")) == whole, "an old abort does not stop a new stream"


def test_the_context_limits_the_answer(
    make: Callable[..., NativeEngine], tiny_model: VLM, tiny_tokenizer: Tokenizer
) -> None:
    room = tiny_model.backbone.max_positions
    header = len(render_prompt(Conversation((user(""),)), tiny_tokenizer, 0).ids)
    fits = Conversation((user("?" * (room - header)),), id="fits")
    if len(render_prompt(fits, tiny_tokenizer, 0).ids) != room:
        pytest.skip("the tokenizer merges question marks")
    completion = make().generate([fits], Generation(max_new_tokens=5, temperature=1.0))[0]
    assert len(completion.ids) == 1, "one token follows from the last position, and cannot be fed back"
    with pytest.raises(DataError, match=f"prompt 'long': {room + 1} tokens leave no room"):
        make().generate([Conversation((user("?" * (room - header + 1)),), id="long")], GREEDY)
    with pytest.raises(DataError, match="'fits'"):
        make().score(fits, ["red"])


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_k": -1}]
)
def test_settings_that_mean_nothing(
    make: Callable[..., NativeEngine], prompts: list[Conversation], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make().generate(prompts, Generation(**wrong))


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    draws = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000

    def frequencies(**settings: Any) -> list[float]:
        tokens = choose(logits.expand(10_000, 4), Generation(temperature=1.0, **settings), draws)
        return (tokens.bincount(minlength=4) / 10_000).tolist()

    assert frequencies() == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=1e-3)
    assert frequencies(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=1e-3)
    assert frequencies(top_p=0.71) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9], abs=1e-3)
    assert frequencies(top_p=0.39) == [0, 1, 0, 0]
    assert frequencies(top_k=3, top_p=0.5) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=1e-3)
    cold = choose(logits.expand(1000, 4), Generation(temperature=0.01), draws[::10])
    assert set(cold.tolist()) == {1}


def test_draws_depend_on_seed_and_place_alone() -> None:
    one, other = Generation(seed=1), Generation(seed=2)
    assert torch.equal(uniforms(one, 0), uniforms(one, 0))
    assert not torch.equal(uniforms(one, 0), uniforms(one, 1))
    assert not torch.equal(uniforms(one, 0), uniforms(other, 0))
