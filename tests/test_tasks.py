"""The built-in tasks on small stand-ins for their data; with the real data under the marker `network`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from components.datasets.easy_vqa import EasyVQADataset
from components.metrics import bootstrap_ci
from components.tasks import easy_vqa, openmoji_names, scenes
from components.tasks.answers import AnswerTask
from components.tasks.config import EasyVQATask, OpenMojiNamesTask, ScenesTask
from components.tasks.openmoji_names import NamingTask
from ghostvis_plugins.errors import ConfigError
from ghostvis_plugins.protocols import Task
from ghostvis_plugins.types import Conversation, Image, assistant, user
from stages.eval_controls import priors

ROWS = [
    ("what shape is this?", "circle", 0),
    ("is there a circle?", "yes", 0),
    ("what shape is this?", "square", 1),
]


def shapes_task() -> AnswerTask:
    dataset = EasyVQADataset(Path("pictures"), ROWS, name="test", per_sample=1)
    return AnswerTask("shapes", "1", dataset, lambda: [(question, answer) for question, answer, _ in ROWS], 4)


def named(name: str, concept: str) -> Conversation:
    picture = Image(data=name.encode())
    return Conversation((user(picture, "what is this?"), assistant(name)), id=name, metadata={"concept": concept})


CATS = [named("cat", "cat"), named("cat face", "cat")]
OTHERS = [named(f"thing {i}", f"thing {i}") for i in range(8)]


def test_answer_task_asks_what_precedes_the_last_answer() -> None:
    task = shapes_task()
    assert isinstance(task, Task)
    first, second, third = task.docs()
    assert first.target == "circle"
    assert [message.role for message in first.prompt.messages] == ["user"]
    assert first.prompt.messages[0].text == "what shape is this?"
    assert (first.tags, second.tags) == (("open",), ("yes_no",))
    assert first.cluster == second.cluster != third.cluster
    assert len({doc.id for doc in task.docs()}) == 3


def test_answer_task_scores_after_normalisation() -> None:
    task = shapes_task()
    first = task.docs()[0]
    assert task.score(first, " Circle.")["exact_match"] == 1.0
    assert task.score(first, "square")["exact_match"] == 0.0
    assert task.score(first, "")["exact_match"] == 0.0


def test_priors_come_from_training_answers_and_ties_from_the_alphabet() -> None:
    prior = priors(shapes_task(), shapes_task().docs())
    assert prior.source == "the training split"
    assert prior.majority == "circle"
    assert prior.per_question == {"what shape is this?": "circle", "is there a circle?": "yes"}


def test_naming_offers_names_of_other_concepts_only() -> None:
    task = NamingTask([*CATS, *OTHERS], OpenMojiNamesTask(draws=20))
    assert isinstance(task, Task)
    docs = task.docs()
    assert len(docs) == 20 * 10
    for doc in docs:
        assert len(set(doc.choices)) == 4
        assert doc.target in doc.choices
    offered = {name for doc in docs if doc.target == "cat" for name in doc.choices}
    assert "cat face" not in offered
    assert len(offered) == 9  # every other thing is drawn sooner or later
    assert {doc.cluster for doc in docs if doc.target.startswith("cat")} == {"cat"}


def test_naming_puts_the_right_name_in_any_place() -> None:
    docs = NamingTask([*CATS, *OTHERS], OpenMojiNamesTask(draws=100)).docs()
    places = Counter(doc.choices.index(doc.target) for doc in docs)
    assert all(200 < places[place] < 300 for place in range(4))


def test_naming_draws_are_a_function_of_seed_and_picture() -> None:
    def drawn(config: OpenMojiNamesTask) -> dict[str, tuple[str, ...]]:
        return {doc.id: doc.choices for doc in NamingTask([*CATS, *OTHERS], config).docs()}

    assert drawn(OpenMojiNamesTask()) == drawn(OpenMojiNamesTask())
    assert drawn(OpenMojiNamesTask()) != drawn(OpenMojiNamesTask(seed=1))
    more = drawn(OpenMojiNamesTask(draws=12))
    assert drawn(OpenMojiNamesTask()).items() <= more.items()
    reordered = NamingTask([*OTHERS, *CATS], OpenMojiNamesTask()).docs()
    assert {doc.id: doc.choices for doc in reordered} == drawn(OpenMojiNamesTask())


def test_naming_needs_enough_other_names() -> None:
    with pytest.raises(ConfigError, match="only 2 other texts"):
        NamingTask([*CATS, *OTHERS[:2]], OpenMojiNamesTask()).docs()


@pytest.mark.parametrize("config", [EasyVQATask, ScenesTask, OpenMojiNamesTask])
def test_options_are_closed(config: type[EasyVQATask]) -> None:
    with pytest.raises(ValidationError):
        config(no_such_option=1)
    with pytest.raises(ValidationError):
        config(split="train")


@pytest.mark.network
def test_easy_vqa_is_the_published_test_split() -> None:
    task = easy_vqa.build(EasyVQATask())
    docs = task.docs()
    assert Counter(tag for doc in docs for tag in doc.tags) == {"yes_no": 7136, "open": 2537}
    assert len({doc.cluster for doc in docs}) == 1000
    prior = priors(task, docs)
    best_blind = bootstrap_ci([task.score(doc, prior.answer(doc))["exact_match"] for doc in docs])
    majority = bootstrap_ci([task.score(doc, prior.majority)["exact_match"] for doc in docs])
    assert best_blind.mean == pytest.approx(0.67, abs=0.01)
    assert majority.mean == pytest.approx(0.37, abs=0.01)


@pytest.mark.network
def test_naming_and_scenes_ask_about_held_out_pictures() -> None:
    from components.datasets.config import OpenMoji
    from components.datasets.openmoji import build

    docs = openmoji_names.build(OpenMojiNamesTask()).docs()
    train = build(OpenMoji(), split="train")
    trained = {train[i].metadata["concept"] for i in range(len(train))}
    assert len(docs) == 10 * len({doc.prompt.id for doc in docs})
    assert not trained & {doc.cluster for doc in docs}
    kinds = Counter(doc.tags[0] for doc in scenes.build(ScenesTask(size=40)).docs())
    assert kinds == {"counting": 10, "position": 10, "colour": 10, "presence": 10}
