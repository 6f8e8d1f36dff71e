"""Ranking captions and measuring dialogues: hand-made data and a tiny model; real data under the marker `network`."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from components.datasets import tuxpaint
from components.datasets.captions import concept_of, normalise
from components.rendering import render
from components.tasks import captions, perplexity
from components.tasks.config import CaptionsTask, ChatPerplexityTask
from components.tasks.openmoji_names import NamingTask
from components.tasks.perplexity import PerplexityTask
from components.tasks.ranking import RankingTask
from ghostvis_plugins import task
from ghostvis_plugins.errors import ConfigError, DataError
from ghostvis_plugins.protocols import LikelihoodTask, Task
from ghostvis_plugins.types import Conversation, Image, assistant, system, user
from stages import eval_likelihood
from stages.eval import evaluate
from stages.eval_likelihood import Likelihoods
from stages.eval_report import table


def captioned(group: str, text: str, picture: Image | None = None) -> Conversation:
    image = picture or Image(data=text.encode())
    metadata = {"concept": concept_of(text)}
    return Conversation((user(image, "Describe."), assistant(text)), id=f"{group}/{text}", metadata=metadata)


def of_group(sample: Conversation) -> str:
    return sample.id.partition("/")[0]


STAMPS = [captioned("stamps", f"A {thing}.") for thing in ("harp", "kettle", "spoon", "ladder", "violin", "anvil")]
FIGURES = [captioned("figures", f"The {thing} dialog") for thing in ("blur", "crop", "print", "scale", "save")]


def ranking(samples: list[Conversation], **options: Any) -> RankingTask:
    return RankingTask("captions", "1", samples, **{"distractors": 3, "group": of_group, **options})


# ranking


def test_distractors_are_other_captions_of_the_same_set() -> None:
    made = ranking([*STAMPS, *FIGURES])
    assert isinstance(made, Task)
    assert not isinstance(made, LikelihoodTask)
    docs = made.docs()
    assert len(docs) == 11
    for doc in docs:
        assert len({normalise(choice) for choice in doc.choices}) == 4
        assert doc.target in doc.choices
        own = {sample.messages[-1].text for sample in (STAMPS if doc.tags == ("stamps",) else FIGURES)}
        assert set(doc.choices) <= own
        assert doc.cluster == concept_of(doc.target)
        assert made.score(doc, doc.target) == {"accuracy": 1.0}
        assert made.score(doc, "") == {"accuracy": 0.0}


def test_mixed_distractors_are_of_every_set() -> None:
    docs = ranking([*STAMPS, *FIGURES], mixed=True, draws=20).docs()
    stamps = {sample.messages[-1].text for sample in STAMPS}
    assert {doc.tags for doc in docs} == {("stamps",), ("figures",)}
    for tags in (("stamps",), ("figures",)):
        wrong = {choice for doc in docs if doc.tags == tags for choice in doc.choices if choice != doc.target}
        assert wrong & stamps
        assert wrong - stamps


def test_captions_of_the_same_thing_are_no_distractors() -> None:
    made = ranking([*STAMPS, captioned("stamps", "A small red harp."), captioned("stamps", "a harp")])
    for doc in made.docs():
        if "harp" in doc.target:
            assert sum("harp" in choice for choice in doc.choices) == 1
    with pytest.raises(ConfigError, match=r"only 2 other texts are held out in 'stamps'"):
        ranking([*STAMPS[:3], captioned("stamps", "a harp")]).docs()


def test_questions_depend_on_seed_and_picture_alone() -> None:
    def asked(made: RankingTask) -> dict[str, tuple[str, ...]]:
        return {doc.id: doc.choices for doc in made.docs()}

    whole = asked(ranking(STAMPS))
    assert asked(ranking(STAMPS[::-1])) == whole
    assert asked(ranking(STAMPS, seed=1)) != whole
    some = asked(ranking(STAMPS, asked=lambda sample: "o" in sample.id))
    assert some.items() < whole.items()
    places = Counter(doc.choices.index(doc.target) for doc in ranking(STAMPS, draws=200).docs())
    assert all(250 < places[place] < 350 for place in range(4))


def test_naming_asks_what_this_ranking_asks() -> None:
    from components.tasks.config import OpenMojiNamesTask

    names = NamingTask(STAMPS, OpenMojiNamesTask(draws=3))
    same = RankingTask("openmoji_names", "1", STAMPS, distractors=3, draws=3)
    assert list(names.docs()) == list(same.docs())


def test_a_limit_takes_the_same_pictures_of_each_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from ghostvis_plugins.types import SampleList

    sets = {"tuxpaint": STAMPS, "gimp_help": FIGURES}
    monkeypatch.setattr(captions, "_dataset", lambda name, config: SampleList(sets[name]))

    def ids(limit: int | None) -> list[str]:
        return [doc.id for doc in captions.build(CaptionsTask(sets=("tuxpaint", "gimp_help"), limit=limit)).docs()]

    assert len(ids(None)) == 11
    assert Counter(id.partition("/")[0] for id in ids(2)) == {"stamps": 2, "figures": 2}
    assert set(ids(2)) < set(ids(4)) < set(ids(None))


@pytest.mark.parametrize("config", [CaptionsTask, ChatPerplexityTask])
def test_options_are_closed(config: type[CaptionsTask]) -> None:
    for wrong in ({"no_such_option": 1}, {"split": "train"}, {"sets": ()}, {"sets": ("easy_vqa",)}):
        with pytest.raises(ValidationError):
            config(**wrong)


# likelihoods

DIALOGUES = [
    Conversation((user("what is it?"), assistant("a red circle")), id="chitchat/a/0"),
    Conversation(
        (user("is it?"), assistant("yes"), user("no?"), assistant("it looks like no 漢字")), id="chitchat/b/0"
    ),
    Conversation((system("be a dog"), user("hello"), assistant("blue cat, green cat")), id="chitchat/b/1"),
]


def measured(model: Any, tokenizer: Any, conversations: Any, **options: Any) -> list[eval_likelihood.Measured]:
    found = [pair for batch in Likelihoods(model, tokenizer, **options).measure(conversations) for pair in batch]
    assert sorted(index for index, _ in found) == list(range(len(conversations)))
    return [figures for _, figures in sorted(found, key=lambda pair: pair[0])]


def test_a_likelihood_is_what_training_minimises(tiny_model: Any, tiny_tokenizer: Any) -> None:
    import torch

    from components.batch import Batch

    for conversation, found in zip(DIALOGUES, measured(tiny_model, tiny_tokenizer, DIALOGUES), strict=True):
        rendered = render(conversation, tiny_tokenizer, tiny_model.tokens_per_image)
        with torch.inference_mode():
            loss, targets = tiny_model.loss(Batch.pack([rendered]))
        assert found.score.tokens == targets == rendered.targets
        assert -found.score.logprob == pytest.approx(float(loss), rel=1e-5)
        said = [message.text for message in conversation.messages if message.role == "assistant"]
        assert (found.bytes, found.messages) == (len("".join(said).encode()), len(conversation.messages))


def test_packing_and_chunks_change_nothing(tiny_model: Any, tiny_tokenizer: Any, monkeypatch: Any) -> None:
    alone = measured(tiny_model, tiny_tokenizer, DIALOGUES, batch_tokens=1)
    monkeypatch.setattr(eval_likelihood, "LOGIT_ROWS", 3)
    for one, other in zip(alone, measured(tiny_model, tiny_tokenizer, DIALOGUES), strict=True):
        assert one.score.logprob == pytest.approx(other.score.logprob, rel=1e-5)
        assert one.score.tokens == other.score.tokens


def test_a_likelihood_is_the_engines_and_sees_the_picture(
    tiny_model: Any, tiny_tokenizer: Any, make_picture: Any
) -> None:
    from components.engines.config import Native
    from components.engines.native import NativeEngine

    engine = NativeEngine(Native(), tiny_model, tiny_tokenizer)
    pictures = [
        Conversation((user(make_picture(n), "what is it?"), assistant("a red circle")), id=str(n)) for n in (1, 2)
    ]
    found = measured(tiny_model, tiny_tokenizer, pictures)
    for conversation, figures in zip(pictures, found, strict=True):
        [score] = engine.score(Conversation(conversation.messages[:1]), ["a red circle"])
        assert figures.score.tokens == score.tokens
        assert figures.score.logprob == pytest.approx(score.logprob, rel=1e-5)
    assert found[0].score.logprob != pytest.approx(found[1].score.logprob, rel=1e-4)


def test_a_long_conversation_is_measured_up_to_the_last_answer_that_fits(tiny_model: Any, tiny_tokenizer: Any) -> None:
    turns = (user("cat? " * 8), assistant("dog. " * 8)) * 6
    long = Conversation(turns, id="long")
    [found] = measured(tiny_model, tiny_tokenizer, [long])
    assert 2 <= found.messages < 12
    assert found.messages % 2 == 0
    assert len(render(Conversation(turns[: found.messages]), tiny_tokenizer, 4).ids) <= 256
    assert len(render(Conversation(turns[: found.messages + 2]), tiny_tokenizer, 4).ids) > 256
    [same] = measured(tiny_model, tiny_tokenizer, [Conversation(turns[: found.messages])])
    assert (same.score, same.bytes) == (found.score, found.bytes)
    with pytest.raises(DataError, match="'endless': its first answer does not end within the 256 tokens"):
        measured(tiny_model, tiny_tokenizer, [Conversation((user("a"), assistant("dog " * 300)), id="endless")])
    with pytest.raises(DataError, match="'mute': the assistant says nothing"):
        measured(tiny_model, tiny_tokenizer, [Conversation((user("a"),), id="mute")])


def row(nats: float, tokens: int, size: int, cluster: str, tag: str = "a") -> dict[str, Any]:
    scores = {"nats": nats, "tokens": float(tokens), "bytes": float(size)}
    return {"scores": scores, "cluster": cluster, "tags": [tag], "cut": False, "prompt_hash": cluster}


def test_figures_are_ratios_of_sums() -> None:
    rows = [row(10.0, 5, 20, "x"), row(2.0, 4, 16, "y", "b"), row(9.0, 3, 9, "y", "b")]
    found = eval_likelihood.summarise(rows)
    assert found["score"]["mean"] == pytest.approx(math.exp(21 / 12))
    assert found["figures"]["bits_per_byte"] == pytest.approx(21 / math.log(2) / 45)
    assert found["tags"]["b"]["mean"] == pytest.approx(math.exp(11 / 7))
    assert (found["score"]["n"], found["score"]["clusters"]) == (3, 2)
    # Two clusters resampled: either alone twice, or both, so the interval ends at the two clusters' own figures.
    assert found["score"]["low"] == pytest.approx(math.exp(11 / 7))
    assert found["score"]["high"] == pytest.approx(math.exp(2))
    assert (found["tokens"], found["bytes"], found["cut"]) == (12, 45, 0)
    alone = eval_likelihood.summarise(rows[:1])["score"]
    assert (alone["low"], alone["high"]) == (None, None)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(tiny_model: Any, tiny_tokenizer: Any) -> None:
    import torch

    with torch.no_grad():
        tiny_model.backbone.head.weight.zero_()
    found = measured(tiny_model, tiny_tokenizer, DIALOGUES)
    assert [f.score.mean_nll for f in found] == pytest.approx([math.log(tiny_model.backbone.vocab_size)] * 3)


# the command


class NoOptions(BaseModel): ...


@pytest.fixture
def model_dir(tmp_path: Path, tiny_model: Any, tiny_values: Any, tiny_tokenizer: Any, tiny_config: Any) -> Path:
    from components.weights import save_model

    return save_model(tmp_path / "model", tiny_model, tiny_tokenizer, tiny_config, {"values": tiny_values})


@pytest.fixture
def registry(make_picture: Any) -> Any:
    """The two tasks on data of our own."""
    from components.builtin import ghostvis_components
    from ghostvis_plugins.manager import Registry

    samples = [captioned(of_group(s), s.messages[-1].text, make_picture(n)) for n, s in enumerate([*STAMPS, *FIGURES])]
    ours = [
        task("our_captions", config=NoOptions, build=lambda config: ranking(samples)),
        task("our_perplexity", config=NoOptions, build=lambda config: PerplexityTask("our_perplexity", "1", DIALOGUES)),
        task("seen", config=NoOptions, build=lambda config: PerplexityTask("seen", "1", samples)),
    ]
    return Registry.from_specs([*ghostvis_components(), *ours])


def test_evaluate_captions_with_controls(model_dir: Path, registry: Any, tmp_path: Path) -> None:
    results = evaluate(model_dir, ["our_captions"], registry, tmp_path / "out", device="cpu")["tasks"]["captions"]
    assert results["chance"] == 0.25
    assert set(results["controls"]) == {"blind", "blank", "permuted"}
    assert set(results["model"]["tags"]) == {"stamps", "figures"}
    assert results["model"]["score"]["n"] == 11
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 11
    for one in rows:
        assert one["output"] == one["choices"][one["nll"].index(min(one["nll"]))]
        assert one["scores"] == {"accuracy": float(one["output"] == one["target"])}


def test_evaluate_perplexity(model_dir: Path, registry: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = evaluate(model_dir, ["our_perplexity", "seen"], registry, out, device="cpu", batch_size=2)
    found = results["tasks"]["our_perplexity"]
    assert found["metric"] == "perplexity"
    assert found["model"]["score"]["mean"] > 1
    assert found["model"]["score"]["clusters"] == 2
    assert all("skipped" in control for control in found["controls"].values())
    assert results == json.loads((out / "results.json").read_text())
    seen = results["tasks"]["seen"]  # with pictures the controls have something to change
    assert {name: seen["controls"][name]["score"]["n"] for name in seen["controls"]} == {
        "blind": 11,
        "blank": 11,
        "permuted": 11,
    }
    assert seen["controls"]["blank"]["score"]["mean"] != seen["model"]["score"]["mean"]
    shown = table(results)
    assert "our_perplexity (version 1): perplexity, 95 % interval over 2 clusters" in shown
    assert "bits per byte" in shown
    lines = (out / "samples.jsonl").read_text().splitlines()
    again = evaluate(model_dir, ["our_perplexity", "seen"], registry, out, device="cpu")
    assert again["tasks"]["our_perplexity"]["model"] == found["model"]
    assert (out / "samples.jsonl").read_text().splitlines() == lines


# real data


@pytest.mark.network
def test_captions_ask_about_held_out_pictures() -> None:
    from components.datasets.config import TuxPaint

    docs = captions.build(CaptionsTask()).docs()
    assert Counter(doc.tags[0] for doc in docs) == {"tuxpaint": 92, "openclipart": 224, "gimp_help": 161}
    train = tuxpaint.build(TuxPaint(), split="train")
    trained = {normalise(train[i].messages[-1].text) for i in range(len(train))}
    for doc in docs:
        assert not {normalise(choice) for choice in doc.choices} & trained
        assert len({normalise(choice) for choice in doc.choices}) == 4
    assert docs == captions.build(CaptionsTask()).docs()


@pytest.mark.network
def test_perplexity_is_of_held_out_dialogues() -> None:
    made = perplexity.build(ChatPerplexityTask(sets=("chitchat", "chatterbot")))
    assert isinstance(made, LikelihoodTask)
    assert not isinstance(made, Task)
    docs = made.docs()
    assert Counter(doc.tags[0] for doc in docs) == {"chitchat": 181, "chatterbot": 38}
    assert all(doc.prompt.messages[-1].role == "assistant" for doc in docs)
    assert len({doc.cluster for doc in docs if doc.tags == ("chitchat",)}) == 63
