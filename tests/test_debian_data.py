"""Captioned pictures from Debian packages: hand-made packages and folders; the real ones under the marker `network`."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from components.datasets import captions, debian, gimp_help, openclipart, openmoji, tuxpaint
from components.datasets.captions import Pair, concept_of, divide, normalise, split_of_caption
from components.datasets.config import DebianOptions, GimpHelp, OpenClipart, OpenMoji, TuxPaint
from components.images import decode
from ghostvis_plugins.errors import ConfigError, DataError, ExitCode, MissingError, UnavailableError
from ghostvis_plugins.protocols import Dataset
from ghostvis_plugins.types import Split, length_of

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
STAMPS = "tuxpaint-stamps-default"
WORDS = """
frog apple hammer violin teapot kettle ladder bucket pillow candle lantern anchor compass feather basket blanket
mirror needle scissors spoon fork knife plate bowl cup saucer jar bottle cork barrel crate wagon sled skate kite
drum flute harp trumpet bugle banjo fiddle bell gong rattle whistle top marble doll puppet mask crown ring chain
brooch purse wallet coin stamp letter parcel envelope ribbon button zipper thread yarn loom wheel axle lever
"""
THINGS = tuple(WORDS.split())


def png(number: int, size: tuple[int, int] = (32, 24), mode: str = "RGBA") -> bytes:
    """A picture by number: noise, different for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def stamps() -> dict[str, bytes | str]:
    """Seventy stamps in two folders, and what lies between them."""
    files: dict[str, bytes | str] = {}
    for number, thing in enumerate(THINGS):
        stem = f"{'animals/birds' if number % 2 else 'household'}/{thing}"
        files[f"{stem}.png"] = png(number)
        files[f"{stem}.txt"] = f"A  {thing}.\nde.utf8=Ein Ding.\n"
        files[f"{stem}_desc_de.ogg"] = b"OggS"
    return files


@pytest.fixture(autouse=True)
def empty_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, and no distribution to find anything in; real packages come from the user's cache."""
    if "network" not in request.keywords:
        monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(debian, "_verified", {})
        monkeypatch.setattr(debian.DebianPin, "installed", property(lambda pin: tmp_path / "none" / pin.content))
    captions._index.cache_clear()
    yield
    captions._index.cache_clear()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(debian.urllib.request, "urlopen", refuse)


def texts(dataset: Any) -> list[str]:
    return [dataset[index].messages[-1].text for index in range(len(dataset))]


def everything(build: Callable[..., Any], config: Any) -> list[Any]:
    return [data[i] for data in (build(config, split=s) for s in SPLITS) for i in range(len(data))]


# Debian packages


def make_deb(
    path: Path, files: dict[str, bytes | str], *, compression: str = "xz", links: dict[str, str] | None = None
) -> Path:
    """A package as `dpkg-deb` writes it: an ar archive of a version, a control archive and an archive of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name if name.startswith(("/", "..")) else f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    suffix = {"xz": ".xz", "gz": ".gz", "": ""}[compression]
    content = {"debian-binary": b"2.0\n", "control.tar.xz": b"abc", f"data.tar{suffix}": buffer.getvalue()}
    out = b"!<arch>\n"
    for name, data in content.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Pin the stamps' package to a file."""

    def pin(deb: Path) -> Path:
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        made = replace(debian.PACKAGES[STAMPS], sha256=digest, size=deb.stat().st_size)
        monkeypatch.setitem(debian.PACKAGES, STAMPS, made)
        return deb

    return pin


def installed(files: dict[str, bytes | str]) -> dict[str, bytes | str]:
    return {f"usr/share/tuxpaint/stamps/{name}": content for name, content in files.items()}


@pytest.mark.parametrize("compression", ["xz", "gz", ""])
def test_a_package_is_unpacked_once_and_without_what_is_not_wanted(tmp_path, pinned, compression):
    files = {**installed(stamps()), "usr/share/doc/x/copyright": "GPL-2", "usr/bin/program": b"\x7fELF"}
    links = {"usr/share/tuxpaint/stamps/link.png": "/etc/passwd"}
    deb = pinned(make_deb(tmp_path / f"{STAMPS}_1_all.deb", files, compression=compression, links=links))
    folder = debian.unpacked(STAMPS, deb)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {name for name in files if not name.endswith(".ogg") and name != "usr/bin/program"} | {
        debian.MANIFEST
    }
    assert (folder / "usr/share/tuxpaint/stamps/household/frog.png").read_bytes() == png(0)
    deb.unlink()
    assert debian.fetch(STAMPS) == folder
    assert debian.cached(STAMPS) == folder


def test_a_damaged_copy_in_the_cache_is_unpacked_again(tmp_path, pinned, monkeypatch):
    deb = pinned(make_deb(tmp_path / f"{STAMPS}_1_all.deb", installed(stamps())))
    folder = debian.unpacked(STAMPS, deb)
    (folder / "usr/share/tuxpaint/stamps/household/frog.png").write_bytes(b"")
    monkeypatch.setattr(debian, "_verified", {})
    assert debian.cached(STAMPS) is None
    assert debian.unpacked(STAMPS, deb) == folder
    assert (folder / "usr/share/tuxpaint/stamps/household/frog.png").read_bytes() == png(0)
    assert not list(folder.parent.glob(".partial-*"))


@pytest.mark.parametrize("name", ["usr/share/tuxpaint/stamps/../../../../x.png", "/usr/share/tuxpaint/stamps/x.png"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path, pinned, monkeypatch, name):
    deb = pinned(make_deb(tmp_path / f"{STAMPS}_1_all.deb", {**installed(stamps()), name: png(0)}))
    monkeypatch.setitem(debian.PACKAGES, STAMPS, replace(debian.PACKAGES[STAMPS], keep=("*.png",)))
    with pytest.raises(DataError, match="outside of the archive"):
        debian.unpacked(STAMPS, deb)
    assert debian.cached(STAMPS) is None
    assert not list(tmp_path.rglob("x.png"))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def scrambled(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 64]) + data[middle + 64 :]


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        scrambled,
        lambda data: b"",
        lambda data: b"PK\3\4" + data,
        lambda data: data[:30],
        lambda data: data.replace(b"data.tar.xz ", b"data.tar.zst"),
        lambda data: data.replace(b"data.tar.xz ", b"more.tar.xz "),
        lambda data: data.replace(b"`\n", b"!\n"),
    ],
    ids=["cut", "scrambled", "empty", "no-ar", "short", "zst", "no-data", "header"],
)
def test_a_damaged_package_is_an_error_of_data(tmp_path, pinned, damage):
    deb = make_deb(tmp_path / f"{STAMPS}_1_all.deb", installed(stamps()))
    deb.write_bytes(damage(deb.read_bytes()))
    with pytest.raises(DataError, match="not the pinned package") as raised:
        debian.unpacked(STAMPS, pinned(deb))
    assert raised.value.exit_code == ExitCode.DATA
    assert debian.cached(STAMPS) is None


def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    deb = make_deb(tmp_path / f"{STAMPS}_1_all.deb", installed(stamps()))
    with pytest.raises(DataError, match="sha256") as raised:
        tuxpaint.build(TuxPaint(debs=(str(deb),)), split="train")
    assert "dpkg -x" in raised.value.hint


def test_a_package_without_the_wanted_files_is_refused(tmp_path, pinned):
    deb = pinned(make_deb(tmp_path / f"{STAMPS}_1_all.deb", {"usr/share/doc/readme": "nothing"}))
    with pytest.raises(DataError, match="none of the wanted files"):
        debian.unpacked(STAMPS, deb)


def test_without_network_the_message_says_where_to_get_it(no_network):
    with pytest.raises(UnavailableError, match="Network is unreachable") as raised:
        tuxpaint.build(TuxPaint(), split="train")
    assert raised.value.exit_code == ExitCode.ENVIRONMENT
    assert "dataset.tuxpaint.debs" in raised.value.hint
    assert f"{STAMPS}_2022.06.04-1_all.deb" in raised.value.hint


def test_the_switch_that_keeps_pip_offline_is_obeyed(monkeypatch, tmp_path):
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(debian, "_from_apt", refuse)
    monkeypatch.setattr(debian, "_from_archive", refuse)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UnavailableError, match="PIP_NO_INDEX is set"):
        gimp_help.build(GimpHelp(), split="test")


def test_apt_comes_first_and_the_archive_second(tmp_path, pinned, monkeypatch):
    deb = pinned(make_deb(tmp_path / "shelf" / f"{STAMPS}_1_all.deb", installed(stamps())))
    asked: list[str] = []

    def apt(command: list[str], *, cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        return subprocess.CompletedProcess(command, 100, "", "E: Failed to fetch https://me:secret@mirror/x  404\n")

    monkeypatch.setattr(debian.shutil, "which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr(debian.subprocess, "run", apt)
    monkeypatch.setattr(debian.urllib.request, "urlopen", lambda *_, **__: deb.open("rb"))
    assert (debian.fetch(STAMPS) / debian.MANIFEST).is_file()
    assert asked == [f"{STAMPS}=2022.06.04-1"]
    assert "secret" not in str(debian._from_apt(debian.PACKAGES[STAMPS], tmp_path))


def test_a_longer_download_than_the_pinned_one_is_cut_off(tmp_path, monkeypatch):
    pin = replace(debian.PACKAGES[STAMPS], size=10)
    monkeypatch.setattr(debian.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"x" * 5_000_000))
    found = debian._from_archive(pin, tmp_path)
    assert isinstance(found, Path)
    assert found.stat().st_size == 11


def test_material_is_looked_for_in_order(tmp_path, pinned, monkeypatch, no_network):
    deb = pinned(make_deb(tmp_path / f"{STAMPS}_1_all.deb", installed(stamps())))
    root = write(tmp_path / "root", stamps())

    def found(**options: Any) -> Path:
        return debian.folders(DebianOptions(**options), {STAMPS: ""}, dataset="tuxpaint")[STAMPS]

    assert found(root=str(root)) == root
    whole = write(tmp_path / "whole", installed(stamps()))
    assert found(root=str(whole)) == whole / "usr/share/tuxpaint/stamps"
    own = found(debs=(str(deb),))
    assert own == debian.fetch(STAMPS) / "usr/share/tuxpaint/stamps"
    assert found() == own
    monkeypatch.setattr(debian.DebianPin, "installed", property(lambda pin: root))
    assert found() == root


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"root": "nowhere"}, MissingError, "is not a folder"),
        ({"debs": ("nowhere.deb",)}, MissingError, "is not a file"),
        ({"root": "x", "debs": ("y",)}, ConfigError, "two ways"),
    ],
)
def test_wrong_options_say_which(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        tuxpaint.build(TuxPaint(**options), split="train")


def test_debs_must_be_of_the_packages_needed(tmp_path):
    deb = make_deb(tmp_path / "openclipart-svg_1_all.deb", {})
    with pytest.raises(MissingError, match="needed: openclipart-svg, openclipart-png"):
        openclipart.build(OpenClipart(debs=(str(deb),)), split="train")


# what the sets share


def test_captions_are_compared_without_case_article_punctuation_and_number():
    assert {normalise(text) for text in ("A Red Apple.", "red apple", " the red-apple 2", "Red_Apple!")} == {
        "red apple"
    }
    assert normalise("A") == "a"
    assert normalise("1") == "1"
    assert concept_of("A green apple.") == concept_of("apple") == "apple"


def test_a_caption_has_one_split_and_openmoji_agrees():
    from components.datasets.concepts import base_concept
    from components.datasets.pictures import concept_split

    for name in ("harp", "red apple", "boxing glove", "teapot", "violin", "woman artist"):
        assert split_of_caption(f"A {name}.") == concept_split(base_concept(name), 1)
    assert split_of_caption("A brown dog.") == "train"  # OpenMoji has many dogs


def test_one_picture_is_never_in_two_splits():
    by_split = {split: next(t for t in THINGS if split_of_caption(t) == split) for split in SPLITS}
    pairs = [Pair(split, text, "x/y.png", digest="same") for split, text in by_split.items()]
    assert [len(divide(pairs[1:])[split][0]) for split in SPLITS] == [0, 1, 0]
    assert [divide(pairs)[split][1] for split in SPLITS] == [0, 1, 1]
    again = [*pairs, replace(pairs[0], id="again")]
    assert [pair.id for pair in divide(again)["train"][0]] == ["train"]


# Tux Paint


def test_stamps_are_pictures_with_their_first_line(tmp_path):
    files = {
        **stamps(),
        "household/unheard.txt": "No picture of this.\n",
        "household/mute.png": png(900),
        "household/blank.txt": "\n",
        "household/blank.png": png(901),
        "household/tiny.txt": "A tiny thing.",
        "household/tiny.png": png(902, (12, 40)),
        "household/damaged.txt": "A damaged thing.",
        "household/damaged.png": png(903)[:25],
        "household/drawn.txt": "\ufeffA drawn  square.\r\nde.utf8=Ein Quadrat.\n",
        "household/drawn.svg": '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 40">'
        '<rect x="2" y="2" width="16" height="36" fill="#c00"/></svg>',
        "household/broken.txt": "A broken drawing.",
        "household/broken.svg": "<svg",
        "symbols/alphabets/a.txt": "The letter a.",
        "symbols/alphabets/a.png": png(904),
    }
    config = TuxPaint(root=str(write(tmp_path / "stamps", files)), render_size=64)
    samples = everything(tuxpaint.build, config)
    found = {sample.messages[-1].text for sample in samples}
    assert found == {f"A {thing}." for thing in THINGS} | {"A drawn square."}
    assert sum(tuxpaint.build(config, split=split).dropped for split in SPLITS) == 5
    drawn = next(sample for sample in samples if "drawn" in sample.id)
    picture = decode(drawn.images[0])
    assert picture.size == (32, 64)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((16, 32)) == (204, 0, 0)
    assert drawn.metadata["license"] == "GPL-2.0-or-later"
    assert drawn.metadata["kind"] == "caption"


def test_contract(tmp_path):
    config = TuxPaint(root=str(write(tmp_path / "stamps", stamps())))
    ids = [sample.id for sample in everything(tuxpaint.build, config)]
    assert len(ids) == len(set(ids)) == len(THINGS)
    for split in SPLITS:
        dataset = tuxpaint.build(config, split=split)
        assert isinstance(dataset, Dataset)
        for index in range(len(dataset)):
            sample = dataset[index]
            assert dataset[index] == sample
            assert dataset.length(index) == length_of(sample)
            assert [message.role for message in sample.messages] == ["user", "assistant"]
            assert sample.messages[0].text in captions.REQUESTS
        for outside in (len(dataset), -1):
            with pytest.raises(IndexError):
                dataset[outside]


def test_files_that_change_are_read_again(tmp_path):
    root = write(tmp_path / "stamps", stamps())
    before = texts(tuxpaint.build(TuxPaint(root=str(root)), split="train"))
    first = next(
        path
        for path in sorted(root.rglob("*.txt"))
        if path.read_text().replace("  ", " ").strip().startswith(before[0])
    )
    first.write_text("A tall thermos bottle of dogs.")
    os.utime(first, ns=(1, 1))
    captions._index.cache_clear()
    assert len(list((tmp_path / "cache" / "captions").iterdir())) == 1
    tuxpaint.build(TuxPaint(root=str(root)), split="train")
    assert len(list((tmp_path / "cache" / "captions").iterdir())) == 2


@pytest.mark.parametrize(
    ("build", "config"), [(tuxpaint.build, TuxPaint), (openclipart.build, OpenClipart), (gimp_help.build, GimpHelp)]
)
def test_a_folder_with_too_little_is_an_error(tmp_path, build, config):
    for folder in ("svg", "png"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    write(tmp_path / "root", {"a.txt": "A frog.", "a.png": png(1)})
    with pytest.raises(DataError, match=r"only [01] captioned pictures") as raised:
        build(config(root=str(tmp_path / "root")), split="train")
    assert "root" in raised.value.hint


# Open Clip Art

SVG = """<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><metadata>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:cc="http://web.resource.org/cc/"><cc:Work rdf:about=""><dc:title>{title}</dc:title>
<dc:description>{description}</dc:description><dc:publisher><cc:Agent><dc:title>Nobody</dc:title></cc:Agent>
</dc:publisher><dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator></cc:Work></rdf:RDF>
</metadata><rect width="9" height="9"/></svg>"""


def clip_art(root: Path, works: list[tuple[str, str, str]]) -> OpenClipart:
    for number, (title, description, author) in enumerate(works):
        svg = SVG.format(title=title, description=description, author=author)
        write(root, {f"svg/x/{number:03}.svg": svg, f"png/x/{number:03}.png": png(number)})
    return OpenClipart(root=str(root))


def test_drawings_have_titles_descriptions_and_authors(tmp_path):
    works = [(thing.title(), "", "Ann") for thing in THINGS]
    works += [
        ("bass_guitar", "A blue bass guitar", "Bob"),
        ("Clipart by Bob - piano_02", "", "Bob"),
        ("Venus", "Created with Inkscape, the Venus drawing", "Bob"),
        *[("Lemon SVG theme", "", "Cy")] * 5,
        *[(f"BlueMan#10{n}", "", "Cy") for n in range(5)],
        ("Chitarra", "", "Architetto Francesco Rollandin"),
        ("M16", "", "Ann"),
        ("", "", "Ann"),
    ]
    config = clip_art(tmp_path, works)
    write(tmp_path, {"svg/y/broken.svg": "<svg><metadata>", "png/y/broken.png": png(800)})
    write(tmp_path, {"svg/y/lonely.svg": SVG.format(title="Lonely", description="", author="")})
    (tmp_path / "svg/y/link.svg").symlink_to(tmp_path / "svg/x/000.svg")
    (tmp_path / "png/y/link.png").symlink_to(tmp_path / "png/x/000.png")
    samples = everything(openclipart.build, config)
    found = {sample.messages[-1].text: sample.metadata["author"] for sample in samples}
    expected = {thing.title(): "Ann" for thing in THINGS}
    assert found == {**expected, "A blue bass guitar": "Bob", "piano": "Bob", "Venus": "Bob"}
    assert sum(openclipart.build(config, split=split).dropped for split in SPLITS) == 14


@pytest.mark.parametrize(
    ("description", "title", "expected"),
    [
        ("A blue bass guitar", "bass-guitar", True),
        ("The Cloud-Covered Planet Venus", "Venus", True),
        ("Venus", "Venus", False),
        ("Capsized Sailing Illustration 6", "Capsized Sailing Illustration 6", False),
        ("This guitar was converted from EPS", "guitar", False),
        ("esta estrela é muito alegre", "estrela", False),
        ("The color of thy mud is easy to change", "green mug of tea", False),
    ],
)
def test_a_description_is_used_when_it_says_more(description, title, expected):
    assert openclipart.says_more(description, title) is expected


def test_a_picture_beyond_the_limit_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "MAX_PIXELS", 1000)
    config = clip_art(tmp_path, [(thing, "", "") for thing in THINGS])
    (tmp_path / "png/x/000.png").write_bytes(png(0, (40, 30)))
    assert len(everything(openclipart.build, config)) == len(THINGS) - 1


# GIMP's manual


def figure(title: str, *pictures: tuple[str, str]) -> str:
    shown = "".join(
        f'<div class="mediaobject"><img src="{path}" alt="{title}" />'
        + (f'<div class="caption"><p>{text}</p></div>' if text else "")
        + "</div>"
        for path, text in pictures
    )
    return (
        f'<div class="figure"><a id="i"></a><p class="title"><strong>Figure&#160;17.3.&#160;{title}</strong></p>'
        f'<div class="figure-contents">{shown}</div></div><br class="figure-break" />'
    )


def test_figures_of_a_page():
    page = "<html><body><p>text</p><img src='images/next.png' />" + figure("The “Blur” dialog", ("images/a.png", ""))
    page += figure("Blur &amp; example", ("images/o.png", "Original"), ("images/b.png", "Filter\n applied</p><p>twice"))
    page += figure("", ("images/c.png", "A click"), ("images/d.png", ""))
    blur, example, untitled = gimp_help.figures(page + "</body></html>")
    assert list(gimp_help.captioned(blur)) == [("images/a.png", "The “Blur” dialog")]
    assert list(gimp_help.captioned(example)) == [("images/b.png", "Blur & example: Filter applied twice")]
    assert list(gimp_help.captioned(untitled)) == [("images/c.png", "A click")]


def test_the_manual_gives_one_sample_a_figure(tmp_path):
    parts = [figure(f"The {thing} dialog", (f"images/{thing}.png", "")) for thing in THINGS]
    parts += [figure(f"Example {n}", ("images/common.png", "")) for n in range(4)]
    parts += [figure("Outside", ("../../secret.png", "")), figure("Gone", ("images/gone.png", ""))]
    write(tmp_path, {"en/one.html": "".join(parts), "en/two.html": parts[0], "secret.png": png(1000)})
    write(tmp_path / "en/images", {f"{thing}.png": png(n) for n, thing in enumerate([*THINGS, "common"])})
    samples = everything(gimp_help.build, GimpHelp(root=str(tmp_path / "en")))
    assert {sample.messages[-1].text for sample in samples} == {f"The {thing} dialog" for thing in THINGS}
    assert len(samples) == len(THINGS)
    assert all(sample.id.startswith("gimp_help/") for sample in samples)


# the real packages

REAL = {
    "tuxpaint": (tuxpaint.build, TuxPaint(), (565, 24, 92)),
    "openclipart": (openclipart.build, OpenClipart(), (1828, 92, 224)),
    "gimp_help": (gimp_help.build, GimpHelp(), (1236, 49, 161)),
}


@pytest.fixture(scope="module")
def real() -> dict[str, dict[Split, list[Any]]]:
    """Every sample of the four sets with captions, by set and split."""
    sets = {
        **{name: (build, config) for name, (build, config, _) in REAL.items()},
        "openmoji": (openmoji.build, OpenMoji()),
    }
    found: dict[str, dict[Split, list[Any]]] = {}
    for name, (build, config) in sets.items():
        built = {split: build(config, split=split) for split in SPLITS}
        found[name] = {split: [data[i] for i in range(len(data))] for split, data in built.items()}
    return found


@pytest.mark.network
@pytest.mark.parametrize("name", list(REAL))
def test_real_sets_have_their_size_and_every_picture_decodes(real, name):
    assert tuple(len(real[name][split]) for split in SPLITS) == REAL[name][2]
    for split in SPLITS:
        for sample in real[name][split]:
            assert sample.messages[-1].text == " ".join(sample.messages[-1].text.split())
            assert not sample.messages[-1].text.startswith("Figure")
        for sample in real[name][split][::20]:
            assert min(decode(sample.images[0]).size) >= captions.SMALLEST


@pytest.mark.network
def test_no_caption_and_no_picture_of_any_set_is_in_two_splits(real):
    texts_in, pictures_in, ids = defaultdict(set), defaultdict(set), []
    for splits in real.values():
        for split, samples in splits.items():
            for sample in samples:
                ids.append(sample.id)
                texts_in[normalise(sample.messages[-1].text)].add(split)
                pictures_in[sample.images[0].digest()].add(split)
    assert len(ids) == len(set(ids))
    assert [text for text, splits in texts_in.items() if len(splits) > 1] == []
    assert [picture for picture, splits in pictures_in.items() if len(splits) > 1] == []


@pytest.mark.network
def test_exceptions_of_the_split_are_those_of_openmoji():
    from collections import Counter

    from components.datasets.pictures import MAX_HELD_OUT, all_pictures

    sizes = Counter(picture.concept for picture in all_pictures())
    assert {concept for concept, size in sizes.items() if size > MAX_HELD_OUT} == captions.ALWAYS_TRAIN
