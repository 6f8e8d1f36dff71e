"""Tar shards: what is written is what is read, at random, by ours and by the library; damage is found and cut out."""

from __future__ import annotations

import io
import pickle
import shutil
import string
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import shard_samples as world
from hypothesis import given, settings
from hypothesis import strategies as st

from components.chat_formats import CHATML
from components.datasets.config_shards import WebDataset
from components.datasets.splits import split_of
from components.datasets.webdataset import Joined, build
from components.shards import foreign, reader, record
from components.shards import index as indexes
from components.shards.index import NAME, ROW
from components.shards.reader import ShardDataset
from components.shards.verify import LEDGER, folders, repair, verify
from components.tokenizers import CONTROL_TOKENS
from ghostvis_plugins.errors import ConfigError, DataError, MissingError, UnavailableError
from ghostvis_plugins.types import (
    Conversation,
    Document,
    Image,
    Message,
    Text,
    ToolCall,
    ToolResult,
    assistant,
    length_of,
    user,
)

TEXTS = st.one_of(st.text(), st.sampled_from([*CONTROL_TOKENS, f"{CHATML.end}\n", "\x00\r\n ", "naïve 漢字 🐱"]))
IDS = st.text(min_size=1, max_size=120)
PICTURES = st.builds(
    lambda magic, rest: Image(data=magic + rest),
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF0000WEBP", b"II*\x00", b"BM", b""]),
    st.binary(min_size=1, max_size=1200),
)
PARTS = st.one_of(
    st.builds(Text, TEXTS), PICTURES, st.builds(ToolCall, TEXTS, TEXTS, TEXTS), st.builds(ToolResult, TEXTS, TEXTS)
)
MESSAGES = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), st.lists(PARTS, max_size=5).map(tuple)
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CONVERSATIONS = st.builds(
    Conversation,
    st.lists(MESSAGES, min_size=1, max_size=4).map(tuple),
    id=IDS,
    metadata=st.dictionaries(TEXTS, VALUES, max_size=3),
)


@given(st.one_of(CONVERSATIONS, st.builds(Document, TEXTS, IDS)))
def test_a_sample_reads_back_as_it_was(sample: Conversation | Document) -> None:
    packed = record.pack(sample)
    assert len(packed) % record.BLOCK == 0
    files = record.unpack(packed)
    assert {record.split_name(name)[0] for name in files} == {record.key_of(sample.id)}
    assert record.decode({record.split_name(name)[1]: data for name, data in files.items()}) == sample
    assert record.pack(sample) == packed


@given(IDS, IDS)
def test_a_key_is_safe_and_its_own(first: str, second: str) -> None:
    from webdataset.tariterators import base_plus_ext

    key = record.key_of(first)
    assert base_plus_ext(f"{key}.0.jpg") == (key, "0.jpg") == record.split_name(f"{key}.0.jpg")
    assert key.isascii()
    assert len(key) <= record.LONGEST_KEY
    assert not key.startswith(("/", "__"))
    assert ".." not in key
    assert (record.key_of(second) == key) == (first == second)


@given(st.text(string.ascii_letters + "._-/", min_size=1))
def test_names_split_as_the_library_splits_them(name: str) -> None:
    from webdataset.tariterators import base_plus_ext

    base, suffix = base_plus_ext(name)
    if base is not None:
        assert record.split_name(name) == (base, suffix.lower())


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (Conversation((user("\ud800"), assistant("x")), id="a"), "not valid Unicode"),
        (Conversation((user("x"), assistant("x")), id=""), "without an id"),
        (Conversation((user("x"), assistant("x")), id="a", metadata={"x": object()}), "metadata cannot be kept"),
        (Conversation((user("x"), assistant("x")), id="a", metadata={1: 2}), "a key is not a string"),
        (Conversation((user(Image(path="nowhere.png")), assistant("x")), id="a"), "nowhere.png: cannot be read"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused(sample: Conversation, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        record.pack(sample)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return world.write(tmp_path / "train", world.samples())


def open_(folder: Path) -> ShardDataset:
    return ShardDataset(indexes.load(folder / NAME))


def test_random_access_gives_the_samples_and_their_costs(folder: Path) -> None:
    dataset, expected = open_(folder), world.samples()
    assert len(dataset) == len(expected)
    for number in (11, 0, 7, 3, 3, 8):
        assert dataset[number] == expected[number]
        assert dataset.length(number) == length_of(expected[number])
    assert dataset.index.pictures[:3].tolist() == [(40, 30)] * 3
    for outside in (-1, 12):
        with pytest.raises(IndexError):
            dataset[outside]


def test_threads_read_with_few_open_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "OPEN_FILES", 1)
    dataset, expected = open_(folder), world.samples()
    dataset._handles = reader._Handles(1)
    order = [number % 12 for number in range(0, 12 * 35, 5)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(dataset.__getitem__, order)) == [expected[number] for number in order]
    assert len(dataset._handles._open) == 1


def test_another_process_opens_its_own_files(folder: Path) -> None:
    dataset = open_(folder)
    first = dataset[0]
    assert pickle.loads(pickle.dumps(dataset))[0] == first


def test_the_library_reads_our_shards(folder: Path) -> None:
    import webdataset

    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    found = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    made = [record.decode({name: data for name, data in row.items() if not name.startswith("__")}) for row in found]
    assert made == world.samples()


def test_an_index_is_small_and_mapped(folder: Path) -> None:
    dataset = open_(folder)
    assert ROW.itemsize + 2 * indexes.PICTURE.itemsize <= 100
    assert not dataset.index.rows.flags.writeable
    assert dataset.index.rows.base is not None


@settings(max_examples=30)
@given(st.data())
def test_a_cut_or_flipped_index_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = world.write(tmp_path_factory.mktemp("index"), world.samples(4))
    whole = (folder / NAME).read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    (folder / NAME).write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"index\.gvx"):
        indexes.load(folder / NAME)
    prelude, header = 64, int.from_bytes(whole[12:16], "little")
    padding = range(prelude + header, prelude + header + -header % 64)
    place = data.draw(st.integers(0, len(whole) - 1).filter(lambda at: at not in padding and not 40 <= at < 64))
    damaged = bytearray(whole)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    (folder / NAME).write_bytes(damaged)
    with pytest.raises(DataError, match=r"index\.gvx"):
        indexes.check_tables(indexes.load(folder / NAME))
    shutil.rmtree(folder)


def test_an_index_of_a_newer_version_says_so(folder: Path) -> None:
    data = bytearray((folder / NAME).read_bytes())
    data[8] = 9
    (folder / NAME).write_bytes(data)
    with pytest.raises(DataError, match="format_version 9, and this version of GhostVis reads 1"):
        open_(folder)


# Damage: how it is done to the second of three shards, what opening says, which samples are lost.


def shard(folder: Path) -> Path:
    return folder / "mixed-train-000001.tar"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def place_of(folder: Path, number: int, name: str) -> int:
    """Where the contents of a member of a sample are in its shard."""
    with tarfile.open(shard(folder)) as tar:
        return tar.getmember(f"mixed/{number}.{name}").offset_data


def cut_in_half(folder: Path) -> None:
    data = shard(folder).read_bytes()
    shard(folder).write_bytes(data[: place_of(folder, 6, "json") - 100])


def flip_picture(folder: Path) -> None:
    flip(shard(folder), place_of(folder, 5, "1.png") + 50)


def flip_json(folder: Path) -> None:
    flip(shard(folder), place_of(folder, 5, "json") + 30)


def flip_header(folder: Path) -> None:
    flip(shard(folder), place_of(folder, 5, "0.jpg") - record.BLOCK + 3)


def remove(folder: Path) -> None:
    shard(folder).unlink()


def lengthen(folder: Path) -> None:
    with shard(folder).open("ab") as file:
        file.write(bytes(10240))


def flip_end(folder: Path) -> None:
    flip(shard(folder), shard(folder).stat().st_size - 5)


DAMAGE: list[tuple[Callable[[Path], None], str | None, list[int]]] = [
    (cut_in_half, "is cut off", [6, 7]),
    (flip_picture, None, [5]),
    (flip_json, None, [5]),
    (flip_header, None, [5]),
    (remove, "is missing", [4, 5, 6, 7]),
    (lengthen, "it changed after the index was written", []),
    (flip_end, None, []),
]


@pytest.mark.parametrize(("damage", "opening", "lost"), DAMAGE, ids=lambda value: getattr(value, "__name__", ""))
def test_damage_is_found_named_and_cut_out(
    folder: Path, damage: Callable[[Path], None], opening: str | None, lost: list[int]
) -> None:
    damage(folder)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*0[02].tar")}
    if opening:
        with pytest.raises(DataError, match=rf"000001\.tar.*{opening}"):
            open_(folder)
    else:
        dataset = open_(folder)
        for number in range(len(dataset)):
            if number in lost:
                with pytest.raises(DataError, match=r"000001\.tar: .*row 5.*byte \d") as raised:
                    dataset[number]
                assert "crc32" in raised.value.message
            else:
                assert dataset[number] == world.samples()[number]
                assert Path(dataset.shard_of(number)).is_file()
        assert all(dataset.shard_of(number).endswith("000001.tar") for number in lost)

    found = verify(folder)
    assert {item.file for item in found.damage} == {"mixed-train-000001.tar"}
    named = {item.id for item in found.damage if item.id}
    assert named <= {f"mixed/{number}" for number in lost}
    if damage in (flip_picture, flip_json):
        assert named == {"mixed/5"}

    result = repair(folder)
    assert result is not None
    assert len(result.lost) == len(lost)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*0[02].tar")} == before
    kept = [sample for number, sample in enumerate(world.samples()) if number not in lost]
    assert list(map(open_(folder).__getitem__, range(len(kept)))) == kept
    assert not verify(folder).damage
    assert repair(folder) is None
    ledger = (folder / LEDGER).read_text().splitlines() if lost else []
    assert len(ledger) == len(lost)


def test_an_index_of_other_shards_is_noticed(folder: Path, tmp_path: Path) -> None:
    """Newer or older than the shards: another size is known at once, another content when it is read."""
    other = world.write(tmp_path / "other", world.samples()[::-1])
    for path in other.glob("*.tar"):
        shutil.copy(path, folder / path.name)
    with pytest.raises(DataError, match=r"crc32|the index"):
        list(map(open_(folder).__getitem__, range(12)))
    assert verify(folder).damage


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_lost_index_is_made_anew(folder: Path, how: str) -> None:
    whole = (folder / NAME).read_bytes()
    old = indexes.load(folder / NAME).rows.copy()
    if how == "cut":
        (folder / NAME).write_bytes(whole[: len(whole) // 2])
    else:
        (folder / NAME).unlink()
    assert folders(folder.parent) == [folder]
    assert [item.file for item in verify(folder).damage] == [NAME]
    shards = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    result = repair(folder)
    assert result is not None
    assert not result.lost
    assert np.array_equal(indexes.load(folder / NAME).rows, old)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")} == shards
    assert not verify(folder).damage


def test_index_and_shard_damaged_together(folder: Path) -> None:
    (folder / NAME).unlink()
    cut_in_half(folder)
    result = repair(folder)
    assert result is not None
    assert any("cut off" in bad.reason or "unexpected end" in bad.reason for bad in result.lost)
    ids = [sample.id for sample in map(open_(folder).__getitem__, range(len(open_(folder))))]
    assert ids == [f"mixed/{number}" for number in (0, 1, 2, 3, 4, 5, 8, 9, 10, 11)]
    assert not verify(folder).damage


def test_a_repair_that_was_interrupted_goes_on(folder: Path) -> None:
    flip_json(folder)
    old = shard(folder).read_bytes()
    (folder / "mixed-train-000001-r1.tar").write_bytes(b"half of a rewritten shard")  # before the index
    assert repair(folder) is not None
    assert not verify(folder).damage
    shard(folder).write_bytes(old)  # as if it had ended before removing the damaged one
    assert [item.reason for item in verify(folder).damage] == ["is a shard that the index does not know"]
    assert repair(folder) is not None
    assert not shard(folder).exists()
    assert not verify(folder).damage


def test_a_repair_does_not_remove_what_is_not_ours(folder: Path) -> None:
    (folder / "mine.tar").write_bytes(b"anything")
    flip_json(folder)
    repair(folder)
    assert (folder / "mine.tar").read_bytes() == b"anything"


def test_no_shards_no_verification(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no shards in"):
        folders(tmp_path)


# The data set component, and tars of somebody else.


def ids(dataset: Joined) -> list[str]:
    return [dataset[number].id for number in range(len(dataset))]


def test_splits_are_folders_or_shares(tmp_path: Path) -> None:
    every = world.samples(60)
    world.write(tmp_path / "set" / "train", every, per_shard=20)
    config = WebDataset(path=str(tmp_path / "set"), validation=0.2, test=0.1)
    found = {split: ids(build(config, split=split)) for split in ("train", "validation", "test")}
    for split, names in found.items():
        assert names == [s.id for s in every if split_of(s.id, validation=0.2, test=0.1) == split]
    assert sum(map(len, found.values())) == 60
    world.write(tmp_path / "set" / "validation", every[:3])
    assert ids(build(config, split="validation")) == [sample.id for sample in every[:3]]
    assert set(ids(build(config, split="train"))) >= set(found["train"]) | set(found["validation"])


def test_several_folders_follow_each_other(tmp_path: Path) -> None:
    paths = [str(world.write(tmp_path / name, world.samples(count))) for name, count in (("a", 5), ("b", 3))]
    dataset = build(WebDataset(path=tuple(paths), validation=0), split="train")
    assert ids(dataset) == [sample.id for sample in [*world.samples(5), *world.samples(3)]]
    assert dataset.length(6) == length_of(world.samples(3)[1])
    assert len(build(WebDataset(path=tuple(paths), validation=0), split="validation")) == 0


@pytest.mark.parametrize("path", ["nowhere", "nowhere/{0..3}.tar", "*.tar"])
def test_a_path_without_shards(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnavailableError, match=r"nowhere|no shards there"):
        build(WebDataset(path=path), split="train")


def make_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


JPEG = world.picture(1, "JPEG").read()
MEMBERS = [
    ("0001.jpg", JPEG),
    ("0001.json", b'{"caption": "not this one", "width": 40}'),
    ("0001.txt", "a caf\u00e9 in the rain\n".encode()),
    ("0002.PNG", world.picture(2).read()),
    ("0002.json", b'{"caption": "a dog", "url": "x"}'),
    ("0003.jpg", JPEG),
    ("sub/0004.jpg", JPEG),
    ("sub/0004.txt", b"\xff\xfe"),
    (f"{'long/' * 30}0005.webp", world.picture(5, "WEBP").read()),
    (f"{'long/' * 30}0005.txt", b"a cat"),
]


@pytest.fixture
def foreign_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tars").mkdir()
    make_tar(tmp_path / "tars" / "00000.tar", MEMBERS)
    make_tar(tmp_path / "tars" / "00001.tar", [(f"b{name}", data) for name, data in MEMBERS[:5]])
    return tmp_path / "tars"


def test_foreign_tars_are_captions(foreign_tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = build(WebDataset(path=str(foreign_tars / "{00000..00001}.tar"), validation=0), split="train")
    assert len(dataset) == 7
    first = dataset[0]
    assert isinstance(first, Conversation)
    assert first.id == "0001"
    assert first.images[0].read() == JPEG
    assert first.messages[1].text == "a café in the rain"
    assert first.metadata == {"caption": "not this one", "width": 40}
    assert dataset[1].messages[1].text == "a dog"
    assert dataset[4].messages[1].text == "a cat"
    for number in (0, 1, 4, 5, 6):
        assert dataset.length(number) == length_of(dataset[number])
    with pytest.raises(DataError, match="sample '0003' has no caption under txt"):
        dataset[2]
    with pytest.raises(DataError, match=r"sample 'sub/0004': its txt is not UTF-8"):
        dataset[3]
    assert "indexing 2 tar files" in capsys.readouterr().err
    build(WebDataset(path=str(foreign_tars)), split="train")
    assert capsys.readouterr().err == ""  # out of the cache
    chosen = build(WebDataset(path=str(foreign_tars), caption="caption", validation=0), split="train")
    assert chosen[0].messages[1].text == "not this one"


def test_our_shards_without_their_index_are_our_samples(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))
    (folder / NAME).unlink()
    dataset = build(WebDataset(path=str(folder), validation=0), split="train")
    assert [dataset[number] for number in range(len(dataset))] == world.samples()
    assert [dataset.length(number) for number in range(12)] == [length_of(sample) for sample in world.samples()]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda data: data[: len(data) // 2], "cut off|unexpected end"),
        (lambda data: data[:1024], "cut off|unexpected end"),
        (lambda data: data[:512] + b"\1" * 512 + data[1024:], "is damaged at|unexpected end"),
        (lambda data: b"no tar at all" * 100, "is not a tar"),
    ],
)
def test_foreign_tars_that_are_damaged(foreign_tars: Path, how: Callable[[bytes], bytes], message: str) -> None:
    path = foreign_tars / "00001.tar"
    data = make_tar(path, [("a.txt", b""), *MEMBERS]).read_bytes()
    path.write_bytes(how(data))
    with pytest.raises(DataError, match=rf"00001\.tar.*({message})"):
        build(WebDataset(path=str(foreign_tars)), split="train")


def test_a_compressed_tar_says_what_to_do(foreign_tars: Path) -> None:
    path = make_tar(foreign_tars / "x.tar.gz", MEMBERS, "w:gz")
    with pytest.raises(DataError, match="is not a tar") as raised:
        build(WebDataset(path=str(path)), split="train")
    assert "Unpack it" in raised.value.hint


def test_a_remote_tar_is_a_stream_and_no_data_set(foreign_tars: Path) -> None:
    source = build(WebDataset(path=f"pipe:cat {foreign_tars}/{{00000,00001}}.tar"), split="train")
    assert isinstance(source, foreign.RemoteShards)
    assert source.parts == 2
    found = dict(source.stream(0))
    assert list(found) == ["0001", "0002", "0003", "sub/0004", f"{'long/' * 30}0005"]
    assert isinstance(found["0003"], DataError)
    with pytest.raises(ConfigError, match="neither a length nor an order") as raised:
        len(source)
    assert "data prepare webdataset" in raised.value.hint
    with pytest.raises(ConfigError, match="no other split"):
        build(WebDataset(path="https://example.org/a.tar"), split="test")
    broken = build(WebDataset(path=f"pipe:head -c 3000 {foreign_tars}/00000.tar"), split="train")
    with pytest.raises(UnavailableError, match="the stream broke off"):
        list(broken.stream(0))


def test_a_remote_tar_that_stops_between_members_is_cut_off(foreign_tars: Path) -> None:
    whole = (foreign_tars / "00000.tar").read_bytes()
    cut = foreign_tars / "cut"
    with tarfile.open(foreign_tars / "00000.tar") as tar:
        last = tar.getmembers()[-1]
    cut.write_bytes(whole[: last.offset])
    assert list(build(WebDataset(path=f"pipe:cat {foreign_tars}/00000.tar"), split="train").stream(0))
    with pytest.raises(UnavailableError, match="the tar is cut off"):
        list(build(WebDataset(path=f"pipe:cat {cut}"), split="train").stream(0))


def test_an_index_cannot_name_shards_outside_of_its_folder(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "thesis.tar"
    victim.write_bytes(b"mine")
    index = indexes.load(folder / NAME)
    for name in ("../thesis.tar", str(victim), "thesis.txt"):
        outside = [indexes.Shard(name, 4, 1), *index.shards]
        indexes.write(folder / NAME, index.rows.copy(), index.pictures.copy(), outside, index.header)
        with pytest.raises(DataError, match="outside of its folder"):
            repair(folder)
    assert victim.read_bytes() == b"mine"


def test_repair_leaves_an_index_of_the_future_and_tars_of_others_alone(folder: Path) -> None:
    other = make_tar(folder / "other.tar", MEMBERS)
    before = other.read_bytes()
    (folder / NAME).unlink()
    assert repair(folder) is not None
    assert (folder / "other.tar.unreadable").read_bytes() == before
    data = bytearray((folder / NAME).read_bytes())
    data[8] = 2
    (folder / NAME).write_bytes(data)
    with pytest.raises(DataError, match="format_version 2"):
        repair(folder)
    assert (folder / NAME).read_bytes() == data


def test_a_link_in_a_foreign_tar_is_a_bad_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))
    path = make_tar(tmp_path / "linked.tar", MEMBERS)
    with tarfile.open(path, "w") as tar:
        for name, data in (("x.caption", b"a cat"), ("x.jpg", None), ("x.png", MEMBERS[0][1])):
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "gone.jpg"
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    dataset = build(WebDataset(path=str(path), validation=0), split="train")
    with pytest.raises(DataError, match=r"x\.jpg is no file but a link"):
        dataset[0]


def test_a_brace_without_its_partner_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.webdataset\.path"):
        build(WebDataset(path="data-{000..009.tar"), split="train")
