"""Data sets of the user's own files: what they read, and what becomes of everything that is wrong with a file."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.datasets import identity, imagefolder, jsonl
from components.datasets.config_local import Identity, ImageFolder, Jsonl
from components.datasets.messages import sample_of
from components.datasets.splits import split_of
from ghostvis_plugins.conformance import check_component
from ghostvis_plugins.errors import DataError, UnavailableError
from ghostvis_plugins.types import (
    Conversation,
    Document,
    Image,
    Text,
    ToolCall,
    ToolResult,
    assistant,
    length_of,
    system,
    user,
)

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def png(make_picture) -> bytes:
    return make_picture(1).data


def write(folder: Path, *rows: object, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def opened(path: Path, split: str = "train", **options):
    options = {"validation": 0, **options}
    return jsonl.build(Jsonl(path=str(path), **options), split=split)


def chat(question: object, answer: object = "yes") -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


# What jsonl reads


def test_openai_messages(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "a b.png").write_bytes(png)
    inline = "data:image/png;base64," + base64.b64encode(png).decode()
    row = {
        "id": 7,
        "source": "mine",
        "messages": [
            {"role": "developer", "content": "be short"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "first"},
                    {"type": "image_url", "image_url": {"url": "a b.png", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": (tmp_path / "a b.png").as_uri()}},
                    {"type": "image", "image": inline},
                    {"type": "text", "text": "<image> last"},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
            {"role": "assistant", "content": "One."},
        ],
    }
    (sample,) = opened(write(tmp_path, row))
    file = Image(path=str(tmp_path / "a b.png"))
    assert sample.messages == (
        system("be short"),
        user("first", file, file, Image(data=png), "<image> last"),
        assistant(ToolCall("add", '{"a": 1}', "c1")),
        sample.messages[3],
        assistant("One."),
    )
    assert sample.messages[3].parts == (ToolResult("1", "c1"),)
    assert sample.metadata == {"id": 7, "source": "mine"}
    assert sample.id == "jsonl/a.jsonl:1"


def test_documents_and_sharegpt(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(png)
    turns = [
        {"from": "human", "value": "<image>\nwhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "no <image> here"},
        {"from": "gpt", "value": "Right."},
    ]
    both = [turns[0], turns[1], {"from": "human", "value": "and it?"}, turns[3]]
    path = write(
        tmp_path,
        {"text": "a document"},
        {"conversations": turns},
        {"image": "1.png", "conversations": both},
        {"images": ["1.png", "1.png"], **chat("compare")},
        {"images": ["1.png", {"path": "1.png"}], **chat([{"type": "image"}, {"type": "text", "text": "or"}] * 2)},
    )
    data = opened(path, root=str(tmp_path / "pictures"))
    picture = Image(path=str(tmp_path / "pictures" / "1.png"))
    assert data[0] == Document("a document", id="jsonl/a.jsonl:1")
    assert [message.text for message in data[1].messages] == [turn["value"] for turn in turns]  # no picture: plain text
    assert data[2].messages[0] == user(picture, "what is it?")
    assert data[3].messages[0] == user(picture, picture, "compare")
    assert data[4].messages[0] == user(picture, "or", picture, "or")
    for index in range(len(data)):
        assert data.length(index) == length_of(data[index])


@given(
    st.lists(
        st.one_of(
            st.builds(lambda text: {"text": text + "."}, st.text(max_size=20)),
            st.builds(lambda q, a: chat(q + "?", a + "!"), st.text(max_size=20), st.text(max_size=20)),
        ),
        min_size=1,
        max_size=30,
    ),
    st.lists(st.integers(0, 30), max_size=5),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lines_are_found_in_any_order(tmp_path: Path, rows: list[dict], blanks: list[int]) -> None:
    """Whatever the texts, and with blank lines between: row i of the file is the sample of line i."""
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    for place in blanks:
        lines.insert(min(place, len(lines)), b"  \r")
    path = tmp_path / "any.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    os.utime(path, ns=(0, hash(path.read_bytes()) % 10**15))  # examples of one size within a tick of the clock
    data = opened(path)
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    assert len(data) == len(rows)
    for index in reversed(range(len(data))):
        expected = sample_of(rows[index], id=f"jsonl/any.jsonl:{numbers[index]}", picture=lambda _: Image(data=b"-"))
        assert data[index] == expected
        assert data.length(index) == length_of(expected)
    for outside in (-1, len(rows)):
        with pytest.raises(IndexError):
            data[outside]


def test_hash_splits_are_the_common_ones(tmp_path: Path) -> None:
    """A line is where `split_of` puts a text, wherever it stands; the splits are disjoint and complete."""
    rows = [{"text": f"document {number}"} for number in range(400)]
    path = write(tmp_path, *rows)
    found = {split: opened(path, split, validation=0.1, test=0.2) for split in SPLITS}
    for split, data in found.items():
        for sample in (data[index] for index in range(len(data))):
            assert split_of(json.dumps({"text": sample.text}), validation=0.1, test=0.2) == split
    assert sum(map(len, found.values())) == len(rows)
    shuffled = opened(write(tmp_path, *rows[::-1], name="b.jsonl"), "test", validation=0.1, test=0.2)
    assert {shuffled[i].text for i in range(len(shuffled))} == {
        found["test"][i].text for i in range(len(found["test"]))
    }


def test_published_splits_and_several_files(tmp_path: Path) -> None:
    for name in ("train-1", "train-2", "val", "test"):
        write(tmp_path / "set", {"text": name}, name=f"{name}.jsonl")
    texts = {split: [sample.text for sample in opened(tmp_path / "set", split, validation=0.4)] for split in SPLITS}
    assert texts == {"train": ["train-1", "train-2"], "validation": ["val"], "test": ["test"]}
    (tmp_path / "set" / "val.jsonl").rename(tmp_path / "val.jsonl")
    write(tmp_path / "set", *({"text": f"{number}"} for number in range(100)), name="train-2.jsonl")
    parts = [opened(tmp_path / "set", split, validation=0.4, test=0.4) for split in SPLITS]
    assert len(parts[0]) + len(parts[1]) == 101  # validation comes out of train, the test split stays what it is
    assert len(parts[1]) > 20
    assert [sample.text for sample in parts[2]] == ["test"]
    (tmp_path / "val.jsonl").rename(tmp_path / "set" / "val.jsonl")
    write(tmp_path / "other", {"text": "other"}, name="val.jsonl")
    paths = [str(tmp_path / "set" / "val.jsonl"), str(tmp_path / "other" / "val.jsonl")]
    data = jsonl.build(Jsonl(path=paths, validation=0), split="train")  # files that are named one by one are data
    assert [sample.text for sample in data] == ["val", "other"]
    assert len({sample.id for sample in data}) == 2


def test_the_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"text": "one"})
    first = opened(path)
    scans: list[Path] = []
    scan = jsonl._scan
    monkeypatch.setattr(jsonl, "_scan", lambda path: scans.append(path) or scan(path))
    assert opened(path)[0] == first[0]
    assert not scans
    (index,) = (tmp_path / "cache" / "jsonl").glob("*/lines.npy")
    index.write_bytes(index.read_bytes()[:100])  # cut off
    assert opened(path)[0] == first[0]
    write(tmp_path, {"text": "one"}, {"text": "two"})
    assert [sample.text for sample in opened(path)] == ["one", "two"]
    assert len(scans) == 2


# What is wrong with a line

BAD_LINES: dict[str, tuple[object, str]] = {
    "not UTF-8": (b'{"text": "caf\xe9"}', "is not UTF-8: byte 0xe9"),
    "UTF-16": ('{"text": "x"}'.encode("utf-16"), "is not UTF-8"),
    "not JSON": (b'{"text": "x"', "is not JSON"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "long number": (b'{"text": ' + b"1" * 5000 + b"}", "is not JSON that can be read"),
    "a list": ([1], "is not a JSON object but a list"),
    "no shape": ({"prompt": "x"}, "none of the keys messages"),
    "no text": ({"text": " "}, "text is empty"),
    "number": ({"text": 3}, "is not text but a number"),
    "surrogate": (b'{"text": "a\\ud800"}', "surrogate pair at character 1"),
    "no messages": ({"messages": []}, "not a list of messages"),
    "a role": ({"messages": [{"role": "bot", "content": "x"}]}, "the role 'bot' is none of system"),
    "no role": ({"messages": [{"content": "x"}]}, "the role None"),
    "a speaker": ({"conversations": [{"from": "narrator", "value": "x"}]}, "the role 'narrator'"),
    "empty answer": (chat("x", "  "), "message 2: the answer of the assistant is empty"),
    "null answer": (chat("x", None), "message 2: the answer of the assistant is empty"),
    "silent user": (chat(""), "message 1: the user says nothing"),
    "missing picture": (chat([{"type": "image_url", "image_url": {"url": "no.png"}}]), "'no.png' does not exist"),
    "address": (chat([{"type": "image_url", "image_url": {"url": "https://a.org/b.png"}}]), "only files and data:"),
    "NUL": (chat([{"type": "image_url", "image_url": {"url": "a\0b"}}]), "does not exist"),
    "base64": (chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,a$b"}}]), "base64 is damaged"),
    "no base64": (chat([{"type": "image_url", "image_url": {"url": "data:image/png,abc"}}]), "without ;base64"),
    "part": (chat([{"type": "video"}]), "a part of type 'video'"),
    "no source": (chat([{"type": "image_url"}]), "says no file for a picture"),
    "more parts": (
        {"images": ["p.png"], **chat([{"type": "image"}] * 2)},
        "a place for picture 2, and the row lists 1",
    ),
    "more markers": ({"image": "p.png", **chat("<image><image>")}, "a place for picture 2, and the row lists 1"),
    "more pictures": ({"images": ["p.png"] * 3, **chat([{"type": "image"}])}, "lists 3 pictures and shows 1"),
    "arguments": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "the arguments of f are not JSON",
    ),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_a_bad_line_is_an_error_of_its_sample_alone(tmp_path: Path, png: bytes, what: str) -> None:
    row, message = BAD_LINES[what]
    (tmp_path / "p.png").write_bytes(png)
    data = opened(write(tmp_path, {"text": "before"}, row, {"text": "after"}))
    assert len(data) == 3
    assert data[0].text == "before"
    with pytest.raises(DataError) as error:
        data[1]
    assert f"{tmp_path / 'a.jsonl'}:2: " in error.value.message
    assert message in error.value.message
    assert data.length(1).text_bytes >= 0  # lengths are asked for all samples, before any is read
    assert data[2].text == "after"


def test_control_tokens_in_user_text_stay_text(tmp_path: Path) -> None:
    text = "<|im_end|><|image|><|endoftext|><|im_start|>assistant"
    (sample,) = opened(write(tmp_path, chat(text)))
    assert sample.messages[0].parts == (Text(text),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n\r\n", "is empty"),
        (b"\x1f\x8b\x08\0", "compressed (gzip)"),
        (b"\x28\xb5\x2f\xfd1234", "compressed (zstandard)"),
    ],
)
def test_a_bad_file_is_an_error_when_opened(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message.replace("(", r"\(").replace(")", r"\)")):
        opened(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"dataset\.jsonl\.path"):
        opened(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"no \.jsonl file"):
        opened(tmp_path)
    with pytest.raises(UnavailableError, match=r"dataset\.imagefolder\.path"):
        imagefolder.build(ImageFolder(path=str(tmp_path / "none")), split="train")


def test_a_line_without_end_is_not_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LONGEST", 100)
    with pytest.raises(DataError, match="not JSON lines"):
        opened(write(tmp_path, {"text": "x" * 200}))


def test_a_file_that_shrinks_under_us(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": "one"}, {"text": "two"})
    data = opened(path)
    path.write_bytes(path.read_bytes()[:-5])
    assert data[0].text == "one"
    with pytest.raises(DataError, match="shorter since it was opened"):
        data[1]
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        data[0]


def test_bad_lines_go_to_the_ledger_of_a_run(tmp_path: Path, tiny_tokenizer) -> None:
    """The stream trains on the good lines and names the bad ones."""
    from stages.data import Stream

    rows = [chat(f"question {number}") for number in range(20)]
    path = write(tmp_path, *rows[:10], b"{broken", *rows[10:], chat("x", ""))
    stream = Stream({"jsonl": (opened(path), 1.0)}, tiny_tokenizer, 4, seed=0, limit=512)
    plan = stream.first(22)
    assert len(plan.samples) == 20
    assert sorted(bad.reason.split(": ")[0] for bad in plan.bad) == [f"{path}:11", f"{path}:22"]


# Folders of pictures


def folder_of(root: Path, png: bytes, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png)
    return root


def pictures(root: Path, split: str = "train", **options):
    return imagefolder.build(ImageFolder(path=str(root), **{"validation": 0, **options}), split=split)


def test_classes(tmp_path: Path, png: bytes) -> None:
    root = folder_of(tmp_path / "set", png, "red_fox/b.png", "red_fox/a.JPG", "cat/1.png", "cat/notes.txt", "top.png")
    data = pictures(root)
    answers = [(sample.metadata["image"], sample.messages[0].text, sample.messages[1].text) for sample in data]
    assert answers == [
        ("cat/1.png", "What is this?", "cat"),
        ("red_fox/a.JPG", "What is this?", "red fox"),
        ("red_fox/b.png", "What is this?", "red fox"),
    ]
    assert [data.length(index) for index in range(3)] == [length_of(data[index]) for index in range(3)]


def test_conformance(tmp_path: Path, png: bytes, builtin_registry) -> None:
    root = folder_of(tmp_path / "set", png, *(f"class_{number % 3}/{number}.png" for number in range(60)))
    path = write(tmp_path, *(chat(f"question {number}") for number in range(60)))
    for name, source in (("imagefolder", root), ("jsonl", path)):
        options = {"path": str(source), "validation": 0.3, "test": 0.3}
        skipped: list[str] = []
        assert not check_component(builtin_registry.get("dataset", name), options=options, skipped=skipped)
        assert not skipped


def test_a_class_may_be_called_train(tmp_path: Path, png: bytes) -> None:
    root = folder_of(tmp_path, png, "train/1.png", "car/2.png")
    assert {sample.messages[1].text for sample in pictures(root)} == {"train", "car"}


def test_metadata_with_published_splits(tmp_path: Path, png: bytes) -> None:
    root = folder_of(tmp_path, png, "train/1.png", "train/2.png", "test/3.png")
    (root / "train" / "metadata.csv").write_text(
        'file_name,q,text\n1.png,"what, where?","a ""cat"""\n1.png,and?,é\n2.png,why,none.png\n', encoding="utf-8-sig"
    )
    write(root / "test", {"file_name": "3.png", "q": "how", "text": "so"}, name="metadata.jsonl")
    data = pictures(root, question="q")
    assert [(s.messages[0].text, s.messages[1].text) for s in data] == [
        ("what, where?", 'a "cat"'),
        ("and?", "é"),
        ("why", "none.png"),
    ]
    assert [sample.id for sample in data] == [f"imagefolder/train/metadata.csv:{line}" for line in (2, 3, 4)]
    assert len(pictures(root, "test", question="q")) == 1
    held = [pictures(root, split, question="q", validation=0.4) for split in ("train", "validation")]
    assert sorted(sample.id for data in held for sample in data) == [sample.id for sample in data]
    captions = pictures(root)
    assert all(sample.messages[0].text in imagefolder.REQUESTS for sample in captions)
    assert pictures(root, request="Say it.")[0].messages[0].text == "Say it."


def test_all_about_a_picture_is_in_one_split(tmp_path: Path, png: bytes) -> None:
    root = folder_of(tmp_path, png, *(f"{number}.png" for number in range(40)))
    rows = [{"file_name": f"{number % 40}.png", "text": f"text {number}"} for number in range(120)]
    write(root, *rows, name="metadata.jsonl")
    held = [{s.metadata["image"] for s in pictures(root, split, validation=0.2, test=0.2)} for split in SPLITS]
    assert all(held)
    assert sum(map(len, held)) == 40
    assert sum(len(pictures(root, split, validation=0.2, test=0.2)) for split in SPLITS) == 120


def test_bad_rows_of_metadata(tmp_path: Path, png: bytes) -> None:
    root = folder_of(tmp_path, png, "1.png")
    rows = [
        {"file_name": "1.png", "text": "good"},
        {"file_name": "2.png", "text": "x"},
        b"{",
        [1],
        {"file_name": "1.png"},
    ]
    path = write(root, *rows, {"file_name": "1.png", "text": " "}, {"file_name": 1, "text": "x"}, name="metadata.jsonl")
    data = pictures(root)
    reasons = []
    for index in range(1, len(data)):
        with pytest.raises(DataError) as error:
            data[index]
        reasons.append(error.value.message)
        assert error.value.message.startswith(f"{path}:{index + 1}: ")
        assert data.length(index).images == 1
    expected = [
        "does not exist",
        "not JSON",
        "not a JSON object",
        "has no text",
        "answer is empty",
        "not text but a num",
    ]
    assert all(part in reason for part, reason in zip(expected, reasons, strict=True))
    assert data[0].messages[1].text == "good"

    path.unlink()
    (root / "metadata.csv").write_bytes(b"file_name,text\n1.png,caf\xe9\n1.png\n1.png,good\n")
    data = pictures(root)
    for index, reason in enumerate(["surrogate", "has no text"]):
        with pytest.raises(DataError, match=reason):
            data[index]
    assert data[2].messages[1].text == "good"


def test_a_folder_that_says_nothing(tmp_path: Path, png: bytes) -> None:
    root = folder_of(tmp_path / "a", png, "1.png")
    with pytest.raises(DataError, match="none in subfolders"):
        pictures(root)
    (root / "metadata.csv").write_text("file_name,caption\n1.png,a cat\n")
    with pytest.raises(DataError, match="no column 'text'; there are file_name, caption"):
        pictures(root)
    assert pictures(root, answer="caption")[0].messages[1].text == "a cat"
    (root / "metadata.csv").write_text("")
    with pytest.raises(DataError, match="is empty"):
        pictures(root)


# Identity


def test_identity_conforms_and_says_the_name() -> None:
    sets = [identity.build(Identity(), split=split) for split in SPLITS]
    train = sets[0]
    assert len(train) > 200
    assert min(map(len, sets)) > 20
    samples = [sample for data in sets for sample in data]
    assert len({sample.id for sample in samples}) == len(samples)
    assert all("{" not in message.text for sample in samples for message in sample.messages)
    names = [s for s in samples if s.metadata["topic"] == "name"]
    assert all("GhostVis" in sample.messages[-1].text for sample in names)
    wordings = [{(s.metadata["topic"], s.id.split("/")[2]) for s in data} for data in sets]
    assert len(set.union(*wordings)) == sum(map(len, wordings))
    assert {"Who are you?", "Can you see pictures?"} <= {sample.messages[0].text for sample in train}
    renamed = identity.build(Identity(assistant="Robo"), split="train")
    assert sum("Robo" in sample.messages[-1].text for sample in renamed) > 50


def test_identity_of_ones_own(tmp_path: Path) -> None:
    toml = tmp_path / "who.toml"
    toml.write_text(
        'system = "You are {name}."\nfacts = { name = "Ada" }\n[[topics]]\nid = "n"\nquestions = ["who?", "name?"]\n'
        'answers = ["{name}."]\n'
    )
    yaml = tmp_path / "who.yaml"
    yaml.write_text(
        "system: You are {name}.\nfacts: {name: Ada}\n"
        "topics:\n- {id: n, questions: ['who?', 'name?'], answers: ['{name}.']}\n"
    )
    built = [identity.build(Identity(path=str(path)), split="train") for path in (toml, yaml)]
    assert list(built[0]) == list(built[1])
    assert built[0][0].messages == (system("You are Ada."), user("who?"), assistant("Ada."))
    rows = write(tmp_path, *(chat(f"who are you, {number}?", "Ada") for number in range(50)))
    data = [identity.build(Identity(path=str(rows)), split=split) for split in SPLITS]
    assert sum(map(len, data)) == 50
    assert isinstance(data[0][0], Conversation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "topics: Field required"),
        ("topics = [", "is not TOML"),
        ('[[topics]]\nid = "a"\nquestions = ["q"]\nanswers = ["I am {name}."]', r"names \{name\}"),
        ('[[topics]]\nid = "a"\nquestions = []\nanswers = ["x"]', r"topics\.0\.questions"),
        ('[[topics]]\nid = "a"\nquestions = ["q"]\nanswers = [" "]', "empty question or answer"),
        ('[[topics]]\nid = "a"\nquestions = ["q"]\nanswers = ["x"]\n' * 2, "two topics have the id 'a'"),
        ('colour = "red"\n[[topics]]\nid = "a"\nquestions = ["q"]\nanswers = ["x"]', "colour: Extra inputs"),
    ],
)
def test_a_bad_identity_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "who.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        identity.build(Identity(path=str(path)), split="train")
