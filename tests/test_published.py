"""Published data sets: every layout as its publisher ships it, and what happens when it is not as it should be."""

from __future__ import annotations

import functools
import gzip
import json
import re
import shutil
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_files import FEW, IMAGE, ROWS, WRITERS, dump, embedded, parquet, picture, put

from components.datasets.builtin import datasets
from components.datasets.published import Published, PublishedDataset
from components.images import decode
from ghostvis_plugins import ComponentSpec
from ghostvis_plugins.conformance import check_component
from ghostvis_plugins.errors import ConfigError, DataError, ExitCode, GhostVisError, MissingError, UnavailableError
from ghostvis_plugins.types import Conversation, length_of

SPECS: dict[str, ComponentSpec] = {spec.name: spec for spec in datasets()}
PUBLISHED = sorted({dataset for dataset, _ in WRITERS.values()})


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GHOSTVIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, dict[str, Any]]]:
    """A layout on the disk, written once: (data set, options)."""

    @functools.cache
    def write(layout: str) -> tuple[str, dict[str, Any]]:
        dataset, writer = WRITERS[layout]
        return dataset, writer(tmp_path_factory.mktemp("published"))

    return write


def fresh(layout: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """A layout that a test may damage."""
    dataset, writer = WRITERS[layout]
    return dataset, writer(folder)


def build(name: str, split: str = "train", **options: Any) -> PublishedDataset:
    spec = SPECS[name]
    return spec.load_build()(spec.load_config()(**options), split=split)


def splits_of(name: str, options: dict[str, Any]) -> dict[str, PublishedDataset]:
    found = {}
    for split in ("train", "validation", "test"):
        try:
            found[split] = build(name, split, **options)
        except (MissingError, UnavailableError):
            continue
    return found


def spread(dataset: PublishedDataset) -> list[int]:
    return sorted({step * (len(dataset) - 1) // 11 for step in range(12)})


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_every_layout_gives_conversations(layout: str, written) -> None:
    name, options = written(layout)
    splits = splits_of(name, options)
    assert splits
    for split, dataset in splits.items():
        assert len(dataset) > 0
        for index in spread(dataset):
            sample = dataset[index]
            assert isinstance(sample, Conversation)
            assert sample.id.startswith(f"{name}/")
            assert dataset.length(index) == length_of(sample)
            assert all(decode(image).size == (8, 6) for image in sample.images)
            assert all("<image>" not in message.text for message in sample.messages)
            answers = [message.text for message in sample.messages if message.role == "assistant"]
            assert answers, (split, sample)
            assert all(text == text.strip() and text for text in answers)
            assert sample.messages[-1].role == "assistant"
    ids = [dataset[index].id for dataset in splits.values() for index in spread(dataset)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_every_layout_conforms(layout: str, written) -> None:
    name, options = written(layout)
    assert check_component(SPECS[name], options=options) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_source_says_where_to_get_it(name: str) -> None:
    more = {"subset": ["ai2d"]} if name == "the_cauldron" else {}
    with pytest.raises(UnavailableError) as caught:
        build(name, **more)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    hint = caught.value.hint
    assert "https://" in hint
    assert f"--set dataset.{name}.path=DIR" in hint
    assert SPECS[name].license in hint
    assert re.search(r"about .*(GB|MB|fetches)", hint)
    skipped: list[str] = []
    assert check_component(SPECS[name], skipped=skipped) == []  # reported as out of reach, not as broken
    assert any(name in reason for reason in skipped)


@pytest.mark.parametrize("name", PUBLISHED)
def test_declaration_and_definition_agree(name: str) -> None:
    published = SPECS[name].load_build()
    assert isinstance(published, Published)
    assert (published.name, published.license) == (name, SPECS[name].license)


# What is in the samples


def test_ten_answers_give_the_most_frequent_and_keep_all(written) -> None:
    name, options = written("vqav2/official")
    train = build(name, "train", **options)
    sample = train[7]
    assert [message.text for message in sample.messages] == [
        "Question 7?\nAnswer the question using a single word or phrase.",
        "net 7",
    ]
    assert sample.metadata["answers"] == ["netting"] * 4 + ["net 7"] * 6
    assert sample.metadata["question_id"] == 2001
    assert Path(str(sample.images[0].path)).name == "COCO_train2014_000000000002.jpg"
    plain = build(name, "train", suffix="", **options)
    assert plain[7].messages[0].text == "Question 7?"


def test_a_tie_is_the_first_answer_and_blank_ones_do_not_count() -> None:
    from components.datasets.published_questions import most_frequent

    assert most_frequent(["b", "a", "a", "b", " "]) == "b"
    assert most_frequent([None, "", "x "]) == "x"
    with pytest.raises(DataError, match="empty answer"):
        most_frequent(["", " ", None])


def test_hidden_test_answers_are_said_to_be_hidden(written) -> None:
    for layout in ("vqav2/official", "textvqa/parquet", "docvqa/parquet", "aokvqa/official"):
        name, options = written(layout)
        with pytest.raises(MissingError, match="the answers are kept by the evaluation server") as caught:
            build(name, "test", **options)
        assert "validation" in caught.value.hint


def test_a_picture_of_coco_has_a_sample_for_each_caption(written) -> None:
    name, options = written("coco_captions/karpathy-parquet")
    train = build(name, "train", **options)
    assert len(train) == sum(5 + n % 2 for n in [*range(ROWS), *range(300, 300 + FEW)])  # train and restval
    assert train[5].messages[1].text == "Caption 0 of picture 1, naïve."
    assert len(train[5].metadata["captions"]) == 6
    assert train[5].id == "coco_captions/train/1/0"
    official, more = written("coco_captions/official")
    assert build(official, "train", **more)[3].messages[1].text == "A thing, number 3."
    assert build(official, "train", request="What?", **more)[3].messages[0].text == "What?"


def test_karpathys_splits_are_apart(written) -> None:
    name, options = written("coco_captions/karpathy-json")
    seen = {
        split: {dataset[index].metadata["image"] for index in range(len(dataset))}
        for split, dataset in splits_of(name, options).items()
    }
    assert [len(seen[split]) for split in ("train", "validation", "test")] == [24, 8, 8]
    assert not seen["train"] & seen["validation"]


@pytest.mark.parametrize("layout", ["llava_instruct/150k", "stvqa/official", "ai2d/official"])
def test_what_is_set_aside_shares_no_picture_with_training(layout: str, written) -> None:
    name, options = written(layout)
    train, validation = build(name, "train", **options), build(name, "validation", **options)

    def pictures(dataset: PublishedDataset) -> set[str]:
        return {str(dataset[index].images[0].path) for index in range(len(dataset))}

    assert pictures(train)
    assert not pictures(train) & pictures(validation)
    ids = [dataset[index].id for dataset in (train, validation) for index in range(len(dataset))]
    assert len(set(ids)) == len(ids)


def test_the_picture_stands_where_the_mark_was(written) -> None:
    name, options = written("llava_instruct/150k")
    dataset = build(name, **options)
    found = {tuple(type(part).__name__ for part in dataset[index].messages[0].parts) for index in range(20)}
    assert found == {("Image", "Text"), ("Text", "Image")}
    assert dataset[0].messages[0].text == "What is this?"


def test_text_only_rows_and_cut_dialogues_of_the_mix(written) -> None:
    name, options = written("llava_instruct/mix665k")
    samples = {s.id: s for s in (build(name, split, **options)[i] for split in ("train", "validation") for i in (0,))}
    first = next(sample for sample in samples.values() if sample.id.endswith("/0"))
    assert first.images == ()
    assert [message.text for message in first.messages] == ["Hi", "Hello"]


def test_a_subset_of_the_cauldron_may_have_two_pictures(written) -> None:
    name, options = written("the_cauldron/parquet")
    both = build(name, **options)
    sample = both[len(both) - 1]
    assert len(sample.images) == 2
    assert sample.metadata["source"] == "nlvr2"
    with pytest.raises(UnavailableError, match="clevr"):
        build(name, path=options["path"], subset=["clevr"])
    with pytest.raises(UnavailableError, match="none of the files"):
        build(name, path=f"{options['path']}/ai2d", subset=["ai2d", "nlvr2"])  # one folder is not two sets
    with pytest.raises(DataError, match=r"clevr/train-\*\.parquet"):
        build(name, path=options["path"], subset=["ai2d", "clevr"])


def test_choices_are_letters(written) -> None:
    name, options = written("aokvqa/official")
    sample = build(name, "validation", **options)[2]
    assert sample.messages[0].text == (
        "What is awaited, number 2?\nA. skateboarder\nB. train\nC. delivery\nD. cab"
        "\nAnswer with the option's letter from the given choices directly."
    )
    assert sample.messages[1].text == "C"
    short = build(name, "validation", **{**options, "form": "short"})[2]
    assert short.messages[1].text == "ride"
    name, options = written("scienceqa/parquet")
    test = build(name, "test", **options)
    assert test[1].messages[0].text.startswith("Context: Bone is made by an animal.\nWhich is a mineral, 1?\nA. Bone")
    assert (len(test[0].images), len(test[1].images)) == (0, 1)


def test_ai2d_never_trains_on_the_test(tmp_path: Path, written) -> None:
    name, options = written("ai2d/official")
    train, test = build(name, "train", **options), build(name, "test", **options)
    held_out = {test[index].metadata["image"] for index in range(len(test))}
    assert held_out == {f"{n}.png" for n in range(0, ROWS, 5)}
    assert not held_out & {train[index].metadata["image"] for index in range(len(train))}
    assert train.dropped == ROWS - ROWS // 5  # those about letters in pictures without letters
    for number in range(ROWS):
        put(tmp_path / "ai2d" / "images" / f"{number}.png", number)
    shutil.copytree(options["path"], tmp_path / "ai2d", dirs_exist_ok=True)
    for number in range(ROWS):
        put(tmp_path / "ai2d" / "abc_images" / f"{number}.png", number)
    both = build(name, "test", path=str(tmp_path / "ai2d"))
    assert (len(both), both.dropped) == (len(test) // 2 * 3, 0)
    assert Path(str(both[2].images[0].path)).parent.name == "abc_images"
    name, options = fresh("ai2d/official", tmp_path)
    (tmp_path / "ai2d_test_ids.csv").unlink()
    with pytest.raises(DataError, match="one would train on the test") as caught:
        build(name, "train", **options)
    assert "prior-datasets" in caught.value.hint


def test_what_img2dataset_could_not_fetch_is_left_out_and_counted(written) -> None:
    name, options = written("laion/img2dataset-files")
    train, validation = build(name, "train", **options), build(name, "validation", **options)
    assert len(train) + len(validation) == 270
    assert train.dropped == 30


def test_the_test_split_of_gqa_is_testdev(written) -> None:
    for layout in ("gqa/parquet", "gqa/official"):
        name, options = written(layout)
        test = build(name, "test", **options)
        assert len(test) == FEW
        assert decode(test[5].images[0]).tobytes() != decode(test[0].images[0]).tobytes()
    assert test[3].metadata["question_id"] == "03"


# Bad rows become errors with the id of the sample


def test_an_empty_answer_names_the_sample(tmp_path: Path) -> None:
    columns = {"image": IMAGE, "query": pa.string(), "label": pa.list_(pa.string()), "human_or_machine": pa.int64()}
    rows = [
        {"image": embedded(1), "query": "How many?", "label": ["2"], "human_or_machine": 0},
        {"image": embedded(1), "query": "How many?", "label": [" "], "human_or_machine": 0},
        {"image": embedded(1), "query": "How many?", "label": None, "human_or_machine": 0},
        {"image": embedded(1), "query": None, "label": ["2"], "human_or_machine": 0},
        {"image": None, "query": "How many?", "label": ["2"], "human_or_machine": 0},
        {"image": {"bytes": b"", "path": "x.png"}, "query": "How many?", "label": ["2"], "human_or_machine": 0},
    ]
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", columns, rows)
    dataset = build("chartqa", "test", path=str(tmp_path))
    assert dataset[0].messages[1].text == "2"
    reasons = ["empty answer", "empty answer", "empty question", "no picture", "no picture"]
    for index, reason in enumerate(reasons, start=1):
        with pytest.raises(DataError, match=rf"^chartqa/test/{index}: .*{reason}"):
            dataset[index]


def test_more_marks_than_pictures(tmp_path: Path) -> None:
    def row(*turns: tuple[str, str], **more: str) -> dict[str, Any]:
        return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns], **more}

    (tmp_path / "a.jpg").write_bytes(picture(1, "JPEG"))
    rows = [
        row(("human", "<image>\nA?"), ("gpt", "B."), image="a.jpg"),
        row(("human", "<image><image>\nA?"), ("gpt", "B."), image="a.jpg"),
        row(("human", "<image>\nA?"), ("gpt", "B.")),
        row(("human", "A?"), ("gpt", "B."), image="a.jpg"),
        row(("human", "<image>\nA?"), ("gpt", ""), image="a.jpg"),
        row(("human", "<image>\nA?"), ("human", "C?"), ("gpt", "B."), image="a.jpg"),
        row(("robot", "<image>\nA?"), ("gpt", "B."), image="a.jpg"),
        row(("human", "<image>\nA?"), ("gpt", "B."), image="not here.jpg"),
        row(("human", "<image>\nA?"), ("gpt", "B."), image="../../etc/passwd"),
        row(("gpt", "first"), ("human", "<image>\nA?"), ("gpt", "B."), image="a.jpg"),
        row(("human", "A?")),
    ]
    dump(tmp_path / "llava_instruct_150k.json", [*rows, *rows[:1] * ROWS])
    dataset = build("llava_instruct", path=str(tmp_path))
    reasons = {
        1: "2 marks <image> for 1 pictures", 2: "1 marks <image> for 0 pictures", 4: "empty answer",
        5: "do not alternate", 6: "a turn is from 'robot'", 7: "the picture not here.jpg is not in",
        8: "not a path inside", 10: "do not alternate",
    }  # fmt: skip
    found = {}
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except DataError as error:
            id, _, reason = error.message.partition(": ")
            found[int(id.split("/")[-1])] = reason
        else:
            assert len(sample.images) == 1
            assert sample.messages[0].role == "user"
    assert set(found) <= set(reasons)
    assert len(found) >= len(reasons) - 1  # one of them may be in validation
    assert all(reasons[row] in reason for row, reason in found.items())


def test_text_that_is_not_utf8_is_a_bad_sample(tmp_path: Path) -> None:
    name, options = fresh("chartqa/official", tmp_path)
    path = tmp_path / "test" / "test_human.json"
    path.write_bytes(path.read_bytes().replace(b"How many in 2?", b"How many in \xff?"))
    dataset = build(name, "test", **options)
    with pytest.raises(DataError, match=r"^chartqa/test/2: text that is not UTF-8"):
        dataset[2]
    assert dataset[3].messages[1].text == "3"

    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary()).cast(pa.string(), safe=False)
    rows = {
        "image": pa.array([embedded(1)] * 2, IMAGE),
        "query": pa.StringArray.from_buffers(2, *raw.buffers()[1:]),
        "label": [["a"], ["b"]],
        "human_or_machine": [0, 1],
    }
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "data" / "test-00000-of-00001.parquet")
    dataset = build(name, "test", path=str(tmp_path))
    assert dataset[0].messages[1].text == "a"
    with pytest.raises(DataError, match=r"^chartqa/test/1: column 'query': text that is not UTF-8"):
        dataset[1]


def test_a_question_without_its_annotations_partner(tmp_path: Path) -> None:
    name, options = fresh("okvqa/official", tmp_path)
    path = tmp_path / "OpenEnded_mscoco_val2014_questions.json"
    document = json.loads(path.read_text())
    document["questions"] = [q for q in document["questions"] if q["question_id"] != 1]
    dump(path, document)
    dataset = build(name, "validation", **options)
    with pytest.raises(DataError, match=r"^okvqa/validation/1: question 1 has an annotation"):
        dataset[1]
    path.unlink()
    with pytest.raises(DataError, match=r"OpenEnded_mscoco_val2014_questions\.json, are not beside it"):
        build(name, "validation", **options)


# Bad files


def damaged(tmp_path: Path, change: Callable[[Path], None]) -> GhostVisError:
    name, options = fresh("docvqa/parquet", tmp_path)
    change(tmp_path / "DocVQA" / "validation-00001-of-00002.parquet")
    with pytest.raises(GhostVisError) as caught:
        build(name, "validation", **options)
    assert caught.value.exit_code == ExitCode.DATA
    return caught.value


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = change(pq.read_table(path))
    pq.write_table(table, path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    def drop(table: pa.Table) -> pa.Table:
        return table.rename_columns([{"question": "Question"}.get(name, name) for name in table.column_names])

    error = damaged(tmp_path, lambda path: rewritten(path, drop))
    assert "validation-00001-of-00002.parquet: column 'question' (string) is missing." in error.message
    assert "Did you mean 'Question'?" in error.message
    assert "answers (list<" in error.hint


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index("answers")
        return table.set_column(at, "answers", pa.array(["x"] * len(table)))

    error = damaged(tmp_path, lambda path: rewritten(path, change))
    assert re.search(r"column 'answers' is string, and list<item: string> was expected", error.message)


def test_a_cut_file_and_a_pointer_in_its_place(tmp_path: Path) -> None:
    error = damaged(tmp_path / "cut", lambda path: path.write_bytes(path.read_bytes()[:-20]))
    assert "not a whole parquet file" in error.message
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4ccf31\nsize 7628\n"
    error = damaged(tmp_path / "pointer", lambda path: path.write_bytes(pointer))
    assert "Git LFS" in error.hint


def test_a_missing_shard_is_not_overlooked(tmp_path: Path) -> None:
    error = damaged(tmp_path, lambda path: path.unlink())
    assert "1 of 2 files are missing, the first is validation-00001-of-00002.parquet" in error.message


def test_a_flipped_byte_inside_is_a_bad_sample(tmp_path: Path) -> None:
    name, options = fresh("docvqa/parquet", tmp_path)
    path = tmp_path / "DocVQA" / "validation-00000-of-00002.parquet"
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    data[start : start + 40] = bytes(40)  # the questions' pages
    path.write_bytes(data)
    dataset = build(name, "validation", **options)
    with pytest.raises(DataError, match=r"^docvqa/validation/0: .*row group 0 cannot be read"):
        dataset[0]
    assert dataset[FEW - 1].messages[1].text == "1/8/93"


def test_an_empty_table_is_an_error(tmp_path: Path) -> None:
    def empty(path: Path) -> None:
        for file in path.parent.glob("validation-*"):
            rewritten(file, lambda table: table.slice(0, 0))

    assert "no rows in it" in damaged(tmp_path, empty).message


def test_half_of_a_set_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    name, options = fresh("chartqa/official", tmp_path)
    (tmp_path / "train" / "train_augmented.json").unlink()
    with pytest.raises(DataError, match=r"there is no .*train_augmented\.json, only the rest"):
        build(name, "train", **options)


def test_a_tar_that_is_cut_in_half(tmp_path: Path) -> None:
    name, options = fresh("laion/webdataset", tmp_path)
    path = tmp_path / "00001.tar"
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) // 2 // 512 * 512, 700):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a whole tar file"):
            build(name, **options)


def test_a_webdataset_without_captions_or_pictures(tmp_path: Path) -> None:
    import io

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number in range(300):
            for file, data in ((f"{number}.txt", b"words"), (f"{number}.jpg", picture(number, "JPEG"))):
                if (number % 3 == 0 and file.endswith("jpg")) or (number % 3 == 1 and file.endswith("txt")):
                    continue
                info = tarfile.TarInfo(file)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    dataset = build("laion", path=str(tmp_path))
    reasons = set()
    for index in range(len(dataset)):
        try:
            assert len(dataset[index].images) == 1
        except DataError as error:
            reasons.add(error.message.partition(": ")[2])
    assert reasons == {"the row has no picture in it", "empty caption"}


def test_a_picture_that_is_not_there_is_never_a_dummy(tmp_path: Path) -> None:
    name, options = fresh("laion/addresses", tmp_path)
    dataset = build(name, **options)
    sample = dataset[4]
    Path(str(sample.images[0].path)).unlink()
    with pytest.raises(DataError, match=r"^laion/train/\d+: the picture from https://example\.org/\d+\.jpg is not in"):
        dataset[4]
    with pytest.raises(UnavailableError, match="there is no such folder"):
        build(name, path=options["path"], images=str(tmp_path / "nowhere"))


def test_a_table_of_addresses_may_call_its_columns_otherwise(tmp_path: Path) -> None:
    _, options = fresh("laion/addresses", tmp_path)
    path = next((tmp_path / "table").glob("*.parquet"))
    rewritten(path, lambda table: table.rename_columns({"URL": "url", "TEXT": "text"}))
    with pytest.raises(DataError, match=r"column 'URL' \(string\) is missing"):
        build("laion", **options)
    dataset = build("laion", **options, address_column="url", caption_column="text")
    assert dataset[0].messages[1].text.startswith("alt text")
    assert decode(dataset[0].images[0]).size == (8, 6)


# Where files are looked for


def test_the_hubs_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--HuggingFaceM4--ChartQA"
    commit = "b605b6e08b57faf4359aeb2fe6a3ca595f99b6c5"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    fresh("chartqa/parquet", repository / "snapshots" / commit)
    assert len(build("chartqa", "test")) == FEW
    assert len(build("chartqa", "test", revision=commit)) == FEW
    with pytest.raises(UnavailableError, match="is not in the hub's cache"):
        build("chartqa", "test", revision="0" * 40)
    shutil.rmtree(repository / "snapshots" / commit / "data")
    with pytest.raises(UnavailableError, match="ChartQA"):
        build("chartqa", "test")


def test_checks_of_plugins_never_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the hub's library was imported: it reads the variable that keeps it offline only then."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    skipped: list[str] = []
    assert check_component(SPECS["chartqa"], skipped=skipped) == []
    assert "not in the hub's cache" in skipped[0]


def test_save_to_disk_and_single_files(tmp_path: Path) -> None:
    _, options = fresh("chartqa/parquet", tmp_path / "hub")
    table = pq.read_table(tmp_path / "hub" / "data" / "test-00000-of-00001-194c9400785577a2.parquet")
    folder = tmp_path / "saved" / "test"
    folder.mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "d1", "_split": "test"}
    (folder / "state.json").write_text(json.dumps(state))
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=2)
    parquets, arrows = build("chartqa", "test", **options), build("chartqa", "test", path=str(tmp_path / "saved"))
    assert [arrows[i] for i in range(len(arrows))] == [parquets[i] for i in range(len(parquets))]
    one = build("chartqa", "test", path=str(next((tmp_path / "hub" / "data").glob("test-*"))))
    assert one[3] == parquets[3]
    with pytest.raises(UnavailableError, match="is a file, and not one of 'train'"):
        build("chartqa", "train", path=str(next((tmp_path / "hub" / "data").glob("test-*"))))
    assert build("chartqa", "test", path=str(folder))[2] == parquets[2]
    with pytest.raises(UnavailableError, match="none of the files of 'train'"):
        build("chartqa", "train", path=str(folder))  # it says itself that it is the test
    (folder / "data-00000-of-00001.arrow").write_bytes((folder / "data-00000-of-00001.arrow").read_bytes()[:300])
    with pytest.raises(DataError, match="not a whole Arrow file"):
        build("chartqa", "test", path=str(tmp_path / "saved"))
    (folder / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"no data-00000-of-00001\.arrow, which its state\.json lists"):
        build("chartqa", "test", path=str(tmp_path / "saved"))


def test_compressed_json(tmp_path: Path) -> None:
    name, options = fresh("sharegpt4v/cap100k", tmp_path)
    plain = build(name, **options)
    path = tmp_path / "sharegpt4v_instruct_gpt4-vision_cap100k.json"
    packed = path.with_name("mine.json.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    packed_set = build(name, path=str(packed))
    assert packed_set[5] == plain[5]
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be unpacked"):
        build(name, path=str(packed))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="subset"):
        SPECS["the_cauldron"].load_config()()
    with pytest.raises(UnavailableError, match="there is no such file or folder"):
        build("gqa", path="/no/such/folder")
    assert issubclass(ConfigError, GhostVisError)


# Threads


def test_threads_read_the_same_samples(written) -> None:
    name, options = written("docvqa/parquet")
    dataset = build(name, **options)
    alone = [dataset[index] for index in range(len(dataset))]
    again = build(name, **options)
    gate = threading.Barrier(4)

    def read(start: int) -> list[Any]:
        gate.wait()
        return [again[(start + step * 37) % len(again)] for step in range(len(again))]

    with ThreadPoolExecutor(4) as pool:
        for start, samples in enumerate(pool.map(read, range(4))):
            assert samples == [alone[(start + step * 37) % len(alone)] for step in range(len(alone))]


# In a run, and on the command line


def test_bad_rows_are_noted_with_their_ids_and_training_goes_on(tmp_path: Path, tiny_tokenizer) -> None:
    from stages.data import Stream
    from stages.loader import Collator

    name, options = fresh("chartqa/official", tmp_path)
    path = tmp_path / "test" / "test_human.json"
    rows = json.loads(path.read_text())
    rows[1]["label"] = ""
    dump(path, rows)
    (tmp_path / "test" / "png" / "human4.png").unlink()
    (tmp_path / "test" / "png" / "augmented2.png").write_bytes(picture(1)[:60])
    stream = Stream({name: (build(name, "test", **options), 1.0)}, tiny_tokenizer, 4, seed=1, limit=400)
    plan = stream.first(2 * FEW)
    assert {bad.reason.split(": ")[0] for bad in plan.bad} == {"chartqa/test/1", "chartqa/test/4"}
    assert len(plan.samples) == 2 * FEW - 2

    class Encoder:
        def transform(self) -> dict[str, Any]:
            return {}

        def preprocess(self, image: Any) -> Any:
            import torch

            return torch.zeros(3, 4, 4)

    batch, kept, bad = Collator(Encoder(), None)(plan.samples)
    assert [(sample.id, "damaged" in sample.reason) for sample in bad] == [("chartqa/test/8", True)]
    assert batch is not None
    assert len(kept) == 2 * FEW - 3


def cli(*arguments: str) -> str:
    import typer
    from typer.testing import CliRunner

    from ghostvis_cli import data

    app = typer.Typer()
    data.register(app)
    result = CliRunner().invoke(app, ["data", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_stats_count_what_cannot_be_used(tmp_path: Path) -> None:
    name, options = fresh("vqav2/official", tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    document = json.loads(path.read_text())
    document["annotations"][2]["answers"] = []
    dump(path, document)
    found = json.loads(cli("stats", name, "-s", f"path={tmp_path}", "-s", f"images={options['images']}", "--json"))
    validation = next(row for row in found["splits"] if row["split"] == "validation")
    assert (validation["samples"], validation["images"], validation["unusable"]) == (FEW, FEW - 1, 1)
    assert list(found["missing"]) == ["test"]
    assert "evaluation server" in found["missing"]["test"]


def test_download_says_that_a_published_set_is_no_package() -> None:
    with pytest.raises(MissingError, match="'vqav2' comes in no package") as caught:
        cli("download", "vqav2")
    assert "dataset.vqav2.path" in caught.value.hint


def test_the_list_fits_a_terminal() -> None:
    lines = cli("list").split("\n\n")[0].splitlines()
    assert len(lines) > 24
    assert max(map(len, lines)) <= 120


# Nothing that a row may hold is a defect


def rows_of(document: Any) -> list[dict[str, Any]]:
    """The rows of a publisher's JSON document: the longest list of objects in it, or the objects of its members."""
    if isinstance(document, list):
        return document
    lists = [value for value in document.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return max(lists, key=len) if lists else list(document.values())


def unusual(value: Any) -> list[Any]:
    """What may stand in the place of a value: nothing, another type, nothing inside."""
    others: list[Any] = [None, "", 7, [None]]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        others += [[{**value[0], key: None}, *value[1:]] for key in value[0]]
    return others


def every_sample(name: str, options: dict[str, Any]) -> int:
    """Reads all there is; how many samples or sets were refused. Anything but a GhostVisError is a defect."""
    refused = 0
    for split in ("train", "validation", "test"):
        try:
            dataset = build(name, split, **options)
        except GhostVisError:
            refused += 1
            continue
        for index in range(min(len(dataset), 3)):
            for read in (dataset.__getitem__, dataset.length):
                try:
                    read(index)
                except DataError:
                    refused += 1
    return refused


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_unusual_values_are_refused_in_plain_words(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("published_files.ROWS", 8)
    monkeypatch.setattr("components.cache.sync", lambda folder: None)  # hundreds of indexes that nobody keeps
    name, options = fresh(layout, tmp_path)
    schemas = [form.schema.all for form in SPECS[name].load_build().layouts]
    asked_for = {"question_id", "question", "id", "file_name", "questions", *(key for all in schemas for key in all)}
    before = every_sample(name, options)
    tables = sorted(tmp_path.rglob("*.parquet"))[:3]
    for path in tables:
        whole = pq.read_table(path)
        for at, column in enumerate(whole.schema):
            if column.name not in asked_for:
                continue
            nothing = pa.nulls(len(whole), column.type)
            pq.write_table(whole.set_column(at, column, nothing), path)
            every_sample(name, options)
        pq.write_table(whole, path)
    for path in [] if layout == "ai2d/official" else sorted(tmp_path.rglob("*.json"))[:2]:
        text = path.read_text()
        row = rows_of(json.loads(text))[1]
        for key in asked_for & set(row):
            for value in unusual(row[key]):
                document = json.loads(text)
                rows_of(document)[1][key] = value
                dump(path, document)
                every_sample(name, options)
        path.write_text(text)
    assert every_sample(name, options) == before
