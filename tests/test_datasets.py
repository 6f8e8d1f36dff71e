"""The built-in data sets: pure functions of the index, honest splits, true answers."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pydantic import ValidationError

from components.datasets import chatterbot, chitchat, easy_vqa, openmoji, pictures, scenes
from components.datasets.augmentation import augment
from components.datasets.concepts import base_concept, may_flip
from components.datasets.config import Chatterbot, Chitchat, EasyVQA, OpenMoji, Scenes
from components.datasets.dialogues import windows
from components.datasets.splits import fraction, split_of
from components.datasets.vocabulary import OBJECTS, SHAPES, plural, with_article
from components.images import decode
from ghostvis_plugins.types import Conversation, Document, Image, length_of

SPLITS = ("train", "validation", "test")
ROOT = Path(__file__).parents[1]
SETS = {
    "easy_vqa": (easy_vqa, EasyVQA()),
    "easy_vqa_turns": (easy_vqa, EasyVQA(questions_per_sample=4)),
    "openmoji": (openmoji, OpenMoji(views=3)),
    "scenes": (scenes, Scenes(size=400)),
    "chitchat": (chitchat, Chitchat()),
    "chitchat_documents": (chitchat, Chitchat(form="documents", max_turns=7)),
    "chatterbot": (chatterbot, Chatterbot()),
    "chatterbot_documents": (chatterbot, Chatterbot(form="documents")),
}


@cache
def built(name: str, split: str):
    module, config = SETS[name]
    return module.build(config, split=split)


def some(dataset, count: int = 60) -> list[int]:
    return sorted({index * len(dataset) // count for index in range(count)} | {0, len(dataset) - 1})


def fingerprint(name: str) -> str:
    """Everything about a few samples of each split, the bytes of their pictures included."""
    digest = hashlib.sha256()
    for split in SPLITS:
        dataset = built(name, split)
        for index in some(dataset, 12):
            sample = dataset[index]
            digest.update(repr((len(dataset), sample.id)).encode())
            if isinstance(sample, Document):
                digest.update(sample.text.encode())
                continue
            for message in sample.messages:
                digest.update(f"{message.role}:{message.text}".encode())
            for image in sample.images:
                digest.update(decode(image).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", list(SETS))
def test_contract(name, split):
    dataset = built(name, split)
    assert len(dataset) > 0
    for index in some(dataset):
        sample = dataset[index]
        assert dataset.length(index) == length_of(sample)
        assert dataset[index] == sample
        assert sample.id
        if isinstance(sample, Conversation):
            roles = [message.role for message in sample.messages]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert len(roles) >= 2
            assert all(message.text.strip() for message in sample.messages)
            assert [len(message.images) for message in sample.messages[1:]] == [0] * (len(roles) - 1)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("name", list(SETS))
def test_ids_are_unique_over_all_splits(name):
    ids = [dataset[index].id for split in SPLITS for dataset in [built(name, split)] for index in some(dataset, 300)]
    assert len(ids) == len(set(ids))


def test_samples_do_not_depend_on_the_process():
    """Another process, with another hash seed, has the same samples."""
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; import test_datasets as t; "
    code += "print(*[t.fingerprint(name) for name in t.SETS])"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert result.stdout.split() == [fingerprint(name) for name in SETS]


@pytest.mark.parametrize("config", [EasyVQA, OpenMoji, Scenes, Chitchat, Chatterbot])
def test_configs_forbid_unknown_options_and_import_nothing_heavy(config):
    with pytest.raises(ValidationError):
        config(no_such_option=1)


def test_config_module_is_light():
    code = "import sys, components.datasets.config; assert not {'torch', 'PIL', 'numpy', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_splits_are_near_their_shares_and_never_move():
    counts = Counter(split_of(f"key {n}", validation=0.04, test=0.12) for n in range(20_000))
    assert counts["test"] == pytest.approx(2400, rel=0.1)
    assert counts["validation"] == pytest.approx(800, rel=0.15)
    assert fraction("apple") == pytest.approx(0x3A7BD3E2 / 2**32, abs=1e-9)  # sha256 begins with these digits


# easy-VQA


def test_easy_vqa_has_its_published_size_and_split():
    train, validation, test = (built("easy_vqa", split) for split in SPLITS)
    assert len(train) + len(validation) == 38_575
    assert len(test) == 9_673
    assert 0.03 < len(validation) / 38_575 < 0.07
    paths = [{dataset[index].images[0].path for index in range(len(dataset))} for dataset in (train, validation, test)]
    assert not paths[0] & paths[1]
    assert [len(paths[0] | paths[1]), len(paths[2])] == [4_000, 1_000]


def test_easy_vqa_answers_and_kinds():
    test = built("easy_vqa", "test")
    kinds: dict[str, set[str]] = {"open": set(), "yes_no": set()}
    for index in range(len(test)):
        sample = test[index]
        kinds[sample.metadata["kind"]].add(sample.messages[1].text)
    assert kinds["yes_no"] == {"yes", "no"}
    assert len(kinds["open"]) == 11


def test_easy_vqa_turns_are_the_same_questions():
    def pairs(name: str) -> Counter[tuple[str, ...]]:
        dataset = built(name, "validation")
        return Counter(
            (sample.metadata["image"], question.text, answer.text)
            for sample in map(dataset.__getitem__, range(len(dataset)))
            for question, answer in zip(sample.messages[::2], sample.messages[1::2], strict=True)
        )

    assert pairs("easy_vqa") == pairs("easy_vqa_turns")
    grouped = built("easy_vqa_turns", "validation")
    turns = [len(grouped[index].messages) // 2 for index in range(len(grouped))]
    assert max(turns) == 4
    assert len(grouped) < len(built("easy_vqa", "validation")) / 3


# OpenMoji

VARIANTS = [
    ("man artist", "woman artist", "artist"),
    ("man with white cane", "person with white cane facing right", "woman with white cane facing right"),
    ("man running", "woman running facing right"),
    ("men holding hands", "woman and man holding hands"),
    ("man", "woman", "person", "woman red hair", "red hair", "deaf man", "pregnant woman"),
    ("boy", "girl", "child"),
    ("family", "family man woman girl boy"),
    ("kiss", "kiss woman man"),
    ("mermaid", "merman", "merperson"),
    ("red heart", "light blue heart", "heart with arrow", "broken heart", "two hearts"),
    ("red circle", "black circle", "hollow red circle"),
    ("yellow square", "black medium-small square", "white square button"),
    ("large blue diamond", "small orange diamond"),
    ("blue book", "closed book", "open book"),
    ("one o'clock", "eleven-thirty", "Twelve o’clock"),
    ("keycap #", "keycap 1", "keycap 10"),
    ("full moon", "new moon face", "waxing crescent moon"),
    ("up arrow", "down-left arrow", "right arrow curving down"),
    ("SOON arrow", "ON! arrow"),
    ("NEW button", "AB button (blood type)"),
    ("Japanese secret button", "Japanese vacancy button"),
    ("play button", "fast-forward button"),
    ("cat", "cat face", "black cat", "crying cat"),
    ("dog", "dog face", "guide dog"),
    ("horse", "horse face"),
    ("tiger", "tiger face"),
    ("rabbit", "rabbit face"),
    ("bus", "oncoming bus"),
    ("taxi", "oncoming taxi"),
    ("house", "houses", "house with garden"),
    ("green apple", "red apple"),
    ("camera", "camera with flash"),
    ("magnifying glass tilted left", "magnifying glass tilted right"),
    ("backhand index pointing up", "index pointing at the viewer"),
    ("left-facing fist", "raised fist"),
    ("thumbs up", "thumbs down"),
    ("grinning face", "smiling face with sunglasses"),
    ("winking face", "winking face with tongue"),
    ("kissing face", "kissing face with closed eyes"),
    ("locked", "unlocked", "locked with key"),
]


@pytest.mark.parametrize("names", VARIANTS, ids=lambda names: names[0])
def test_variants_share_a_concept(names):
    assert len({base_concept(name) for name in names}) == 1


def test_different_things_do_not():
    names = [variants[0] for variants in VARIANTS]
    names += ["hot dog", "kiss mark", "bow and arrow", "anatomical heart", "chess pawn", "face with tears of joy"]
    names += ["face with monocle", "nesting dolls", "beach with umbrella", "clinking glasses", "orange", "angry face"]
    concepts = Counter(base_concept(name) for name in names)
    assert [concept for concept, count in concepts.items() if count > 1] == []
    assert base_concept("France", "1F1EB-1F1F7") != base_concept("Chad", "1F1F9-1F1E9")


def test_pictures_are_distinct_and_split_by_concept():
    parts = {split: pictures.pictures(split) for split in SPLITS}
    everything = [picture for part in parts.values() for picture in part]
    assert sorted(everything, key=lambda p: p.id) == list(pictures.all_pictures())
    assert len(everything) == 1_889
    assert len({picture.name for picture in everything}) == len(everything)
    assert len({picture.id for picture in everything}) == len(everything)
    concepts = {split: {picture.concept for picture in part} for split, part in parts.items()}
    assert not concepts["train"] & concepts["test"]
    assert not concepts["train"] & concepts["validation"]
    assert not concepts["validation"] & concepts["test"]
    assert [len(parts[split]) for split in SPLITS] == [1_657, 68, 164]
    held_out = Counter(picture.concept for split in ("validation", "test") for picture in parts[split])
    assert max(held_out.values()) <= pictures.MAX_HELD_OUT


def test_no_held_out_picture_was_trained_on():
    """Not even under another name: what is rendered differs in at least one pixel."""
    seen = {hashlib.sha256(Path(picture.path).read_bytes()).digest() for picture in pictures.pictures("train")}
    for split in ("validation", "test"):
        for picture in pictures.pictures(split):
            assert hashlib.sha256(Path(picture.path).read_bytes()).digest() not in seen, picture.name


def test_no_skin_tones_and_clean_names():
    for picture in pictures.all_pictures():
        assert not any(0x1F3FB <= int(point, 16) <= 0x1F3FF for point in picture.id.split("-"))
        assert not set(picture.name) & set("_’")
        assert not picture.name.startswith(":")
    names = {picture.id: picture.name for picture in pictures.all_pictures()}
    assert [names[id] for id in ("1F34E", "1F1EB-1F1F7", "1F415")] == ["red apple", "flag: France", "dog"]


def test_rendered_pictures_are_visible_and_transparent():
    for picture in pictures.all_pictures()[::40]:
        alpha = np.asarray(PIL.Image.open(picture.path).convert("RGBA"))[..., 3]
        assert alpha.shape == (128, 128)
        assert alpha.max() > 200, picture.name
        assert alpha[0, 0] == 0


def test_damaged_rendering_is_rendered_again(tmp_path, monkeypatch, capsys):
    drawings = pictures._drawings()[:30]
    monkeypatch.setattr(pictures, "_drawings", lambda: drawings)
    first = pictures._all_pictures(tmp_path, 32)
    Path(first[0].path).write_bytes(b"")
    pictures._all_pictures.cache_clear()
    again = pictures._all_pictures(tmp_path, 32)
    pictures._all_pictures.cache_clear()
    assert again == first
    assert PIL.Image.open(again[0].path).size == (32, 32)


def test_openmoji_views():
    train, plain = built("openmoji", "train"), openmoji.build(OpenMoji(), split="train")
    assert len(train) == 3 * len(plain)
    for place in (0, 700, len(plain) - 1):
        views = [train[place + view * len(plain)] for view in range(3)]
        assert len({view.messages[1].text for view in views}) == 1
        assert len({decode(view.images[0]).tobytes() for view in views}) == 3
        assert {decode(view.images[0]).size for view in views} == {(128, 128)}
        assert views[0].images == plain[place].images
    assert [len(openmoji.build(OpenMoji(views=9), split=split)) for split in ("validation", "test")] == [68, 164]


def test_questions_vary():
    train = built("openmoji", "train")
    counts = Counter(train[index].messages[0].text for index in range(0, len(train), 9))
    assert set(counts) == set(openmoji.QUESTIONS)
    assert max(counts.values()) < 2 * min(counts.values())


def test_pictures_are_shown_as_they_are_by_default(builtin_registry):
    """Turned, scaled or mirrored views are asked for, in every set that has them: reading would suffer."""
    configs = {spec.name: spec.load_config() for spec in builtin_registry.specs("dataset")}
    views = {name: config.model_fields["views"].default for name, config in configs.items()
             if "views" in config.model_fields}  # fmt: skip
    assert {"openmoji", "tuxpaint", "openclipart", "gimp_help"} <= set(views)
    assert set(views.values()) == {1}


@pytest.mark.parametrize("mirror", [False, True])
def test_views_are_mirrored_where_that_is_said(mirror):
    """A drawing with a red left and a blue right half."""
    drawing = PIL.Image.new("RGBA", (64, 64), "red")
    drawing.paste("blue", (32, 0, 64, 64))
    swapped = 0
    for seed in range(40):
        view = np.asarray(decode(Image(data=augment(drawing, random.Random(seed), mirror=mirror))), dtype=int)
        left, right = (np.argwhere((view[..., hue] > 200) & (view[..., 2 - hue] < 60))[:, 1].mean() for hue in (0, 2))
        swapped += bool(left > right)
    assert (5 < swapped < 35) if mirror else swapped == 0


def test_what_may_be_mirrored():
    names = {picture.name: picture.id for picture in pictures.all_pictures()}
    assert all(may_flip(names[name]) for name in ("dog", "red apple", "elephant", "pizza"))
    forbidden = ["flag: France", "right arrow", "keycap 1", "three o'clock", "NEW button", "first quarter moon"]
    forbidden += ["man running facing right", "thumbs up", "leftwards hand", "magnifying glass tilted left"]
    assert not any(may_flip(names[name]) for name in forbidden)


# Scenes


def evaluate(scene: scenes.Scene) -> str:
    """The answer, worked out again from the question and from what stands where."""
    words = {id: word for word, id in OBJECTS.items()}
    words |= {id: shape for shape, colours in SHAPES.items() for id in colours.values()}
    colours = {id: colour for shape in SHAPES.values() for colour, id in shape.items()}
    at = {words.get(item.id, "picture"): item for item in scene.placed}
    question = scene.question.rstrip("?").split()
    if scene.form == "count_pictures":
        return str(len(scene.placed))
    if scene.form == "count_named":
        return str(sum(plural(words[item.id]) == question[2] for item in scene.placed))
    if scene.form in ("where_picture", "where_named"):
        item = scene.placed[0] if scene.form == "where_picture" else at[question[-1]]
        dx, dy = item.x - 64, item.y - 64
        assert abs(abs(dx) - abs(dy)) > 8
        return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("bottom" if dy > 0 else "top")
    if scene.form == "what_relation":
        (other,) = [word for word in at if word != question[-1]]
        return other if holds(at[other], " ".join(question[2:-2]), at[question[-1]]) else "nothing"
    if scene.form == "is_relation":
        return "yes" if holds(at[question[2]], " ".join(question[3:-2]), at[question[-1]]) else "no"
    if scene.form == "colour":
        return colours[at[question[-1]].id]
    assert scene.form == "presence"
    return "yes" if question[-1] in at else "no"


def holds(one: scenes.Placed, relation: str, other: scenes.Placed) -> bool:
    dx, dy = one.x - other.x, one.y - other.y
    sideways = abs(dx) > abs(dy)
    return {
        "left of": sideways and dx < 0,
        "right of": sideways and dx > 0,
        "above": not sideways and dy < 0,
        "below": not sideways and dy > 0,
    }[relation]


@pytest.mark.parametrize("split", SPLITS)
def test_answers_of_scenes_are_true(split):
    dataset = scenes.build(Scenes(size=2000), split=split)
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        assert scene.answer == evaluate(scene), (index, scene)


def test_drawings_stay_on_the_canvas_apart_and_large():
    dataset = scenes.build(Scenes(size=2000), split="train")
    for index in range(len(dataset)):
        placed = dataset.scene(index).placed
        assert 1 <= len(placed) <= 4
        for item in placed:
            assert 40 <= item.side <= 60
            assert item.side / 2 <= item.x <= 128 - item.side / 2
            assert item.side / 2 <= item.y <= 128 - item.side / 2
        for place, one in enumerate(placed):
            for other in placed[:place]:
                gap = max(abs(one.x - other.x), abs(one.y - other.y)) - (one.side + other.side) / 2
                assert gap >= 0, (index, one, other)


def test_scenes_show_what_they_say():
    """The drawn picture has paint in the box of every drawing and none outside of the boxes."""
    dataset = scenes.build(Scenes(size=60), split="test")
    for index in range(60):
        image = np.asarray(decode(dataset[index].images[0]))
        background = image[0, 0] if (image[0, 0] == image[-1, -1]).all() else image[0, -1]
        paint = (image != background).any(axis=-1)
        for item in dataset.scene(index).placed:
            half = item.side // 2 + 1
            rows, columns = slice(max(item.y - half, 0), item.y + half), slice(max(item.x - half, 0), item.x + half)
            assert paint[rows, columns].mean() > 0.05
            paint[rows, columns] = False
        assert not paint.any()


def test_answers_are_balanced():
    dataset = scenes.build(Scenes(size=8000), split="train")
    answers: dict[str, Counter[str]] = {}
    for index in range(len(dataset)):
        scene = dataset.scene(index)
        answers.setdefault(scene.form, Counter())[scene.answer] += 1
    for form, counts in answers.items():
        if form != "what_relation":
            assert max(counts.values()) < 1.45 * min(counts.values()), (form, counts)
    assert set(answers["count_named"]) == set("01234")
    assert len(answers["what_relation"]) == len(OBJECTS)


def test_held_out_scenes_are_made_of_held_out_drawings():
    trained = {picture.id for picture in pictures.pictures("train")}
    assert set(OBJECTS.values()) | {id for shape in SHAPES.values() for id in shape.values()} <= trained
    for split in SPLITS:
        dataset = scenes.build(Scenes(size=800), split=split)
        for index in range(len(dataset)):
            scene = dataset.scene(index)
            nameless = scene.form in ("count_pictures", "where_picture")
            assert scene.objects == ("held_out" if nameless and split != "train" else "known")
            assert all((item.id in trained) == (scene.objects == "known") for item in scene.placed)


def test_scenes_of_different_splits_differ():
    train, test = (scenes.build(Scenes(size=500), split=split) for split in ("train", "test"))
    assert not {train.scene(index) for index in range(500)} & {test.scene(index) for index in range(500)}


def test_scene_options():
    dataset = scenes.build(Scenes(size=40, questions=("colour", "counting"), canvas=200), split="train")
    assert Counter(dataset[index].metadata["kind"] for index in range(40)) == {"colour": 20, "counting": 20}
    assert decode(dataset[3].images[0]).size == (200, 200)
    longer = scenes.build(Scenes(size=80, questions=("colour", "counting"), canvas=200), split="train")
    assert longer[3] == dataset[3]


def test_words():
    assert [plural(word) for word in ("dog", "octopus", "butterfly", "fish", "snowman")] == [
        "dogs",
        "octopuses",
        "butterflies",
        "fish",
        "snowmen",
    ]
    assert [with_article(word) for word in ("owl", "dog")] == ["an owl", "a dog"]
    assert len(OBJECTS) == len(set(OBJECTS.values())) == 40


# Text


def test_chitchat_counts_what_it_drops():
    parts = [built("chitchat", split) for split in SPLITS]
    assert sum(part.dropped for part in parts) == 3_151
    keys = [{part[index].id.split("/")[1] for index in range(len(part))} for part in parts]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 7_168 - 3_151
    assert len(keys[0]) / 4_017 == pytest.approx(0.96, abs=0.01)


def test_chitchat_loses_no_turn_between_windows():
    short, long = (chitchat.build(Chitchat(form="documents", max_turns=n), split="test") for n in (4, 10_000))

    def texts(dataset) -> dict[str, str]:
        found: dict[str, str] = {}
        for index in range(len(dataset)):
            key = dataset[index].id.rsplit("/", 1)[0]
            found[key] = (found[key] + "\n" if key in found else "") + dataset[index].text
        return found

    whole, pieces = texts(long), texts(short)
    assert set(whole) == set(pieces)
    for key, text in whole.items():
        lines = text.split("\n")
        assert pieces[key].split("\n") == (lines[:-1] if len(lines) % 4 == 1 else lines)
    assert max(len(short[index].text.split("\n")) for index in range(len(short))) == 4


def test_windows():
    assert list(windows("abcdefg", 4)) == ["abcd", "efg"]
    assert list(windows("abcde", 5)) == ["abcd"]
    assert list(windows("a", 4)) == []


def test_chatterbot():
    parts = [built("chatterbot", split) for split in SPLITS]
    rows = [[tuple(m.text for m in part[index].messages) for index in range(len(part))] for part in parts]
    assert sum(map(len, rows)) == len({row for part in rows for row in part}) > 850
    questions = [{chatterbot._key(row[0]) for row in part} for part in rows]
    assert not questions[0] & questions[1]
    assert not questions[0] & questions[2]
    assert all(part.dropped >= 0 for part in parts)
    used = {part[index].id.split("/")[1] for part in parts for index in range(len(part))}
    assert used
    assert not used & chatterbot.UNUSED


def test_documents_are_the_conversations():
    talks, documents = built("chatterbot", "test"), built("chatterbot_documents", "test")
    assert [documents[i].text for i in range(len(documents))][:5] == [
        "\n".join(message.text for message in talks[i].messages) for i in range(len(talks))
    ][:5]
