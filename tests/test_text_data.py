"""Published text sets, from fixtures in the columns and types that their publishers ship, and tables of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from components.datasets import chats, corpora, parquet, problems
from components.datasets import config_text as options
from components.datasets.problems import boxed
from components.datasets.published import Published
from ghostvis_plugins.errors import ConfigError, DataError, GhostVisError, MissingError, UnavailableError
from ghostvis_plugins.types import Conversation, Document, Image, assistant, length_of, system, user

STRING, INT64, INT32, FLOAT64 = pa.string(), pa.int64(), pa.int32(), pa.float64()
TURNS = [("content", STRING), ("role", STRING)]

# Columns as published, in their order.
FINEWEB = pa.schema(
    [
        ("text", STRING),
        ("id", STRING),
        ("dump", STRING),
        ("url", STRING),
        ("file_path", STRING),
        ("language", STRING),
        ("language_score", FLOAT64),
        ("token_count", INT64),
        ("score", FLOAT64),
        ("int_score", INT64),
    ]
)
CLIMBMIX = pa.schema([("text", STRING)])
SMOLTALK = pa.schema([("messages", pa.list_(pa.struct(TURNS))), ("source", STRING)])
SHAREGPT = pa.list_(pa.struct([("from", STRING), ("value", STRING)]))
OPENTHOUGHTS3 = pa.schema([("difficulty", INT64), ("source", STRING), ("domain", STRING), ("conversations", SHAREGPT)])
OPENTHOUGHTS = pa.schema([("system", STRING), ("conversations", SHAREGPT)])
GSM8K = pa.schema([("question", STRING), ("answer", STRING)])
MATH = pa.schema([("problem", STRING), ("level", STRING), ("type", STRING), ("solution", STRING)])
MMLU = pa.schema([("question", STRING), ("subject", STRING), ("choices", pa.list_(STRING)), ("answer", INT64)])
MMLU_AUX = pa.schema(
    [
        (
            "train",
            pa.struct([("answer", INT64), ("choices", pa.list_(STRING)), ("question", STRING), ("subject", STRING)]),
        )
    ]
)
ARC = pa.schema(
    [
        ("id", STRING),
        ("question", STRING),
        ("choices", pa.struct([("text", pa.list_(STRING)), ("label", pa.list_(STRING))])),
        ("answerKey", STRING),
    ]
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def table(folder: Path, name: str, schema: pa.Schema, rows: list[dict[str, Any]], **more: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **more)
    return path


def open_all(published: Published, config: Any, split: str = "train") -> list[Any]:
    """Every sample of a split, with the promise about its length."""
    data = published(config, split=split)
    samples = [data[index] for index in range(len(data))]
    assert [data.length(index) for index in range(len(data))] == [length_of(sample) for sample in samples]
    assert len({sample.id for sample in samples}) == len(samples)
    return samples


def page(number: int, text: str | None = None) -> dict[str, Any]:
    return {
        "text": f" Page {number}.\n" if text is None else text,
        "id": f"<urn:uuid:{number}>",
        "dump": "CC-MAIN-2024-10",
        "url": "https://example.org",
        "file_path": "s3://commoncrawl/x.warc.gz",
        "language": "en",
        "language_score": 0.97,
        "token_count": 5,
        "score": 3.2,
        "int_score": 3,
    }


def test_fineweb_edu(tmp_path: Path) -> None:
    for number in range(2):
        rows = [page(row) for row in range(number * 5000, (number + 1) * 5000)]
        table(tmp_path, f"sample/10BT/{number:03d}_00000.parquet", FINEWEB, rows)
    config = options.FineWebEdu(path=str(tmp_path))
    held = [
        {
            int(sample.text.removeprefix(" Page ").removesuffix(".\n"))
            for sample in open_all(corpora.FINEWEB_EDU, config, split)
        }
        for split in ("train", "validation")
    ]  # nothing is stripped from a text
    assert held[0] | held[1] == set(range(10_000))
    assert len(held[0]) + len(held[1]) == 10_000
    blocks = [{number // corpora.BLOCK for number in numbers} for numbers in held]
    assert blocks[1]
    assert not blocks[0] & blocks[1]
    with pytest.raises(MissingError, match="no test split"):
        corpora.FINEWEB_EDU(config, split="test")
    table(tmp_path / "shuffled", "shard_00000.parquet", CLIMBMIX, [{"text": f"t{row}"} for row in range(3000)])
    shuffled = corpora.FINEWEB_EDU(options.FineWebEdu(path=str(tmp_path / "shuffled")), split="train")
    assert isinstance(shuffled[0], Document)


def test_climbmix(tmp_path: Path) -> None:
    for shard in (0, 1, 250, 6542):
        rows = [{"text": f"{shard}/{row}"} for row in range(3)]
        table(tmp_path, f"shard_{shard:05d}.parquet", CLIMBMIX, rows, row_group_size=2)
    config = options.ClimbMix(path=str(tmp_path))
    assert [sample.text for sample in open_all(corpora.CLIMBMIX, config)] == [
        f"{s}/{r}" for s in (0, 1) for r in range(3)
    ]
    assert [sample.text for sample in open_all(corpora.CLIMBMIX, config, "validation")] == [
        "6542/0",
        "6542/1",
        "6542/2",
    ]
    more = options.ClimbMix(path=str(tmp_path), shards="00[0-4]??")
    assert len(open_all(corpora.CLIMBMIX, more)) == 9
    for pattern in ("*", "0654?", "06542", "[0-9]*"):
        with pytest.raises(ValidationError, match="is the validation split"):
            options.ClimbMix(shards=pattern)


def test_an_empty_document_is_a_bad_sample(tmp_path: Path) -> None:
    table(tmp_path, "shard_00000.parquet", CLIMBMIX, [{"text": "a"}, {"text": " \n"}, {"text": None}])
    data = corpora.CLIMBMIX(options.ClimbMix(path=str(tmp_path)), split="train")
    for index in (1, 2):
        with pytest.raises(DataError, match=f"climbmix/train/{index}: empty text"):
            data[index]


def talk(question: str, answer: str | None, prompt: str | None = None) -> list[dict[str, Any]]:
    turns = [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]
    return [{"content": prompt, "role": "system"}, *turns] if prompt is not None else turns


def test_smoltalk(tmp_path: Path) -> None:
    rows = [
        {"messages": talk("Hi", "Hello.", "Be kind."), "source": "systemchats-30k"},
        {"messages": talk("<|im_end|> What?", "That.") + talk("And?", " So. "), "source": "smol-magpie-ultra"},
        {"messages": talk("Hi", None), "source": "broken"},
        {"messages": [], "source": "broken"},
        {"messages": [{"content": "x", "role": "narrator"}], "source": "broken"},
    ]
    for name in ("data/all/train-00000-of-00002", "data/all/train-00001-of-00002", "data/all/test-00000-of-00001"):
        table(tmp_path, f"{name}.parquet", SMOLTALK, rows)
    config = options.SmolTalk(path=str(tmp_path))
    data = chats.SMOLTALK(config, split="test")
    assert data[0] == Conversation(
        (system("Be kind."), user("Hi"), assistant("Hello.")),
        id="smoltalk/test/0",
        metadata={"source": "systemchats-30k"},
    )
    assert [message.text for message in data[1].messages] == ["<|im_end|> What?", "That.", "And?", " So. "]
    reasons = ["the answer of the assistant is empty", "not a list of messages", "the role 'narrator'"]
    for index, reason in enumerate(reasons, 2):
        with pytest.raises(DataError, match=f"smoltalk/test/{index}: .*{reason}"):
            data[index]
    table(tmp_path / "smol", "data/train-00000-of-00001.parquet", SMOLTALK, rows[:1] * 300)
    small = options.SmolTalk(path=str(tmp_path / "smol"))
    sizes = [len(chats.SMOLTALK(small, split=split)) for split in ("train", "validation")]
    assert sum(sizes) == 300
    assert sizes[1] > 0
    (tmp_path / "data/all/train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="1 of 2 files are missing"):
        chats.SMOLTALK(config, split="train")


def test_openthoughts_keeps_the_thoughts(tmp_path: Path, tiny_tokenizer) -> None:
    from components.rendering import render

    thought = "<think>\nLet me see.\n</think>\n\nIt is 4."
    turns = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": thought}]
    rows = [{"difficulty": 7, "source": "s", "domain": "math", "conversations": turns}] * 199
    rows.append({"difficulty": None, "source": "s", "domain": "code", "conversations": turns})  # as in science and code
    table(tmp_path, "data/train-00000-of-00001.parquet", OPENTHOUGHTS3, rows)
    samples = open_all(chats.OPENTHOUGHTS, options.OpenThoughts(path=str(tmp_path)))
    assert samples[0].messages == (user("2 + 2?"), assistant(thought))
    assert samples[0].metadata == {"difficulty": 7, "source": "s", "domain": "math"}
    assert samples[-1].metadata == {"source": "s", "domain": "code"}
    rendered = render(samples[0], tiny_tokenizer, 0)
    learnt = [id for id, mask in zip(rendered.ids, rendered.loss_mask, strict=True) if mask]
    assert tiny_tokenizer.decode(learnt).startswith(thought)

    turns = [{"from": "user", "value": "2 + 2?"}, {"from": "assistant", "value": "<|begin_of_thought|>…"}]
    table(
        tmp_path / "old",
        "data/train-00000-of-00001.parquet",
        OPENTHOUGHTS,
        [{"system": "Think.", "conversations": turns}] * 200,
    )
    older = open_all(chats.OPENTHOUGHTS, options.OpenThoughts(path=str(tmp_path / "old")))
    assert older[0].messages == (system("Think."), user("2 + 2?"), assistant("<|begin_of_thought|>…"))


STEPS = "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 1,072"


def test_gsm8k(tmp_path: Path) -> None:
    rows = [{"question": "How many?", "answer": STEPS}] * 200
    table(tmp_path, "main/train-00000-of-00001.parquet", GSM8K, rows)
    table(tmp_path, "main/test-00000-of-00001.parquet", GSM8K, [*rows[:1], {"question": "How?", "answer": "Seven."}])
    config = options.GSM8K(path=str(tmp_path))
    sample = open_all(problems.GSM8K, config)[0]
    assert sample.messages[1].text == "She sold 48/2 = 24 clips.\nIn all 48+24 = 72.\n#### 1,072"
    assert sample.metadata["answer"] == "1072"
    kept = problems.GSM8K(options.GSM8K(path=str(tmp_path), annotations="keep"), split="test")
    assert kept[0].messages[1].text == STEPS
    with pytest.raises(DataError, match="gsm8k/test/1: the solution does not end with ####"):
        kept[1]
    lines = tmp_path / "github" / "grade_school_math" / "data" / "test.jsonl"
    lines.parent.mkdir(parents=True)
    lines.write_text(json.dumps(rows[0]) + "\n")
    assert len(open_all(problems.GSM8K, options.GSM8K(path=str(tmp_path / "github")), "test")) == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{ \{2\} }", r"\{2\}"),
        (r"\fbox{3}", "3"),
        (r"\boxed{4", None),
        ("nothing", None),
    ],
)
def test_boxed(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


def test_math(tmp_path: Path) -> None:
    row = {"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{2}$."}
    for subject in ("algebra", "geometry"):
        for split in ("train", "test"):
            table(tmp_path, f"{subject}/{split}-00000-of-00001.parquet", MATH, [row] * 150)
    sample, *rest = open_all(problems.MATH, options.MATH(path=str(tmp_path)), "test")
    assert len(rest) == 299
    assert sample.metadata == {"kind": "expression", "level": "Level 1", "subject": "Algebra", "answer": "2"}
    assert sample.messages == (user("1+1?"), assistant(r"It is $\boxed{2}$."))
    assert len(open_all(problems.MATH, options.MATH(path=str(tmp_path), subset="algebra"), "test")) == 150


def test_mmlu_aux(tmp_path: Path) -> None:
    row = {"question": "Which?", "subject": "", "choices": ["a", "b", "c", "d"], "answer": 2}
    for name in ("auxiliary_train", "validation", "test"):
        table(tmp_path, f"all/{name}-00000-of-00001.parquet", MMLU, [row | {"subject": name}])
    config = options.MMLUAux(path=str(tmp_path))
    (sample,) = open_all(problems.MMLU_AUX, config)
    assert sample.messages[0].text == "Which?\nA. a\nB. b\nC. c\nD. d" + config.suffix
    assert sample.messages[1].text == sample.metadata["answer"] == "C"
    assert open_all(problems.MMLU_AUX, config, "validation")[0].metadata["subject"] == "validation"
    rows = [{"train": row}] * 150 + [{"train": row | {"answer": 4}}]
    table(tmp_path / "aux", "auxiliary_train/train-00000-of-00001.parquet", MMLU_AUX, rows)
    data = problems.MMLU_AUX(options.MMLUAux(path=str(tmp_path / "aux")), split="train")
    assert data[0].messages == sample.messages
    with pytest.raises(DataError, match="the right choice is number 4 of 4"):
        data[len(data) - 1]


def test_arc(tmp_path: Path) -> None:
    row = {"id": "Mercury_1", "question": "Which?", "answerKey": "B"}
    letters = row | {"choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}}
    numbers = row | {"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    wrong = row | {"choices": {"text": ["x", "y"], "label": ["A", "C"]}}
    for part in ("ARC-Easy", "ARC-Challenge"):
        table(tmp_path, f"{part}/train-00000-of-00001.parquet", ARC, [letters, numbers])
        table(tmp_path, f"{part}/validation-00000-of-00001.parquet", ARC, [wrong])
    samples = open_all(problems.ARC, options.ARC(path=str(tmp_path)))
    assert [sample.metadata["answer"] for sample in samples] == ["B", "C"] * 2
    assert len(open_all(problems.ARC, options.ARC(path=str(tmp_path), subset="ARC-Easy"))) == 2
    with pytest.raises(DataError, match="the answer 'B' is none of A, C"):
        problems.ARC(options.ARC(path=str(tmp_path)), split="validation")[0]


SETS: list[tuple[Published, Any]] = [
    (corpora.FINEWEB_EDU, options.FineWebEdu),
    (corpora.CLIMBMIX, options.ClimbMix),
    (chats.SMOLTALK, options.SmolTalk),
    (chats.OPENTHOUGHTS, options.OpenThoughts),
    (problems.GSM8K, options.GSM8K),
    (problems.MATH, options.MATH),
    (problems.MMLU_AUX, options.MMLUAux),
    (problems.ARC, options.ARC),
]


@pytest.mark.parametrize(("published", "config"), SETS, ids=lambda value: getattr(value, "name", ""))
def test_nothing_there_is_said_and_never_empty(published: Published, config: Any, tmp_path: Path) -> None:
    for options_ in ({}, {"path": str(tmp_path / "none")}, {"path": str(tmp_path)}):
        with pytest.raises(UnavailableError) as error:
            published(config(**options_), split="train")
        assert published.repo in error.value.hint
        assert f"dataset.{published.name}.path" in error.value.hint


@pytest.mark.parametrize(("published", "config"), SETS, ids=lambda value: getattr(value, "name", ""))
def test_another_schema_is_an_error_when_opened(published: Published, config: Any, tmp_path: Path) -> None:
    first = published.layouts[0].files["train"][0]
    name = first.format(**config().model_dump()).replace("*", "x").replace("?", "0")
    table(tmp_path, name, pa.schema([("texts", STRING)]), [{"texts": "x"}])
    with pytest.raises(DataError, match="is missing"):
        published(config(path=str(tmp_path)), split="train")
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(DataError, match="not a whole parquet file"):
        published(config(path=str(tmp_path)), split="train")


# Tables of one's own


def own(path: Path, split: str = "train", **more: Any):
    return parquet.build(options.Parquet(path=str(path), **{"validation": 0, **more}), split=split)


def test_parquet_of_every_kind(tmp_path: Path, make_picture) -> None:
    png = make_picture(1).data
    (tmp_path / "1.png").write_bytes(png)
    picture = pa.struct([("bytes", pa.binary()), ("path", STRING)])
    schema = pa.schema(
        [
            ("t", STRING),
            ("q", pa.large_string()),
            ("a", STRING),
            ("m", pa.list_(pa.struct(TURNS))),
            ("s", SHAREGPT),
            ("embedded", picture),
            ("raw", pa.binary()),
            ("file", STRING),
        ]
    )
    row = {
        "t": " text ",
        "q": "what?",
        "a": "a cat",
        "m": talk("hi", "ho"),
        "s": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}],
        "embedded": {"bytes": png, "path": None},
        "raw": png,
        "file": "1.png",
    }
    path = table(tmp_path, "t.parquet", schema, [row, dict.fromkeys(row)])
    assert own(path, text="t")[0].text == " text "
    assert own(path, messages="m")[0].messages == own(path, messages="s")[0].messages == (user("hi"), assistant("ho"))
    assert own(path, answer="a", request="say")[0].messages == (user("say"), assistant("a cat"))
    for column, shown in (
        ("embedded", Image(data=png)),
        ("raw", Image(data=png)),
        ("file", Image(path=str(tmp_path / "1.png"))),
    ):
        data = own(path, answer="a", question="q", image=column)
        assert data[0].messages == (user(shown, "what?"), assistant("a cat"))
        assert data.length(0) == length_of(data[0])
        assert own(path, messages="m", image=column)[0].messages[0] == user(shown, "hi")
    for more in ({"text": "t"}, {"messages": "m"}, {"answer": "a", "question": "q", "image": "file"}):
        with pytest.raises(DataError, match=r"parquet/train/1: "):
            own(path, **more)[1]


def test_parquet_of_other_files_and_splits(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps({"t": f"row {number}"}) + "\n" for number in range(300)))
    sizes = [len(own(lines, split, text="t", validation=0.1, test=0.1)) for split in ("train", "validation", "test")]
    assert sum(sizes) == 300
    assert min(sizes) > 10
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, CLIMBMIX) as writer:
        writer.write_table(pa.table({"text": ["mapped"]}, schema=CLIMBMIX))
    assert own(tmp_path / "rows.arrow", text="text")[0].text == "mapped"
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        table(tmp_path / "set" / "data", f"{name}.parquet", CLIMBMIX, [{"text": name}])
    assert [own(tmp_path / "set", split, text="text")[0].text[:4] for split in ("train", "test")] == ["trai", "test"]
    assert len(own(tmp_path / "set", "validation", text="text")) == 0


def test_parquet_says_what_is_wrong(tmp_path: Path) -> None:
    path = table(tmp_path, "t.parquet", CLIMBMIX, [{"text": "x"}])
    with pytest.raises(ConfigError, match=r"dataset\.parquet\.text = t: .* has the columns text"):
        own(path, text="t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.parquet"):
        own(tmp_path / "empty", text="t")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(GhostVisError, match="not a table"):
        own(path, text="text")
    for more in ({}, {"text": "t", "answer": "a"}, {"answer": "a"}, {"text": "t", "question": "q"}):
        with pytest.raises(ValidationError):
            options.Parquet(path="x", **more)
