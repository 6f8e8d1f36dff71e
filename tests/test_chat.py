"""The conversation behind every chat, its commands, and `ghostvis chat` off a terminal."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from pydantic import BaseModel

from ghostvis_cli import chat as chat_module
from ghostvis_cli.app import run as ghostvis
from ghostvis_cli.chat_commands import BUILT_IN, Command, commands, help_text, parse
from ghostvis_cli.chat_complete import complete
from ghostvis_cli.chat_paths import leading_images, split_paths
from ghostvis_cli.chat_session import ChatModel, ChatSession, Reply, changed, clean
from ghostvis_cli.models import resolve_model
from ghostvis_plugins import ConfigError, DataError, GhostVisError, MissingError, chat_command
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Completion, Conversation, Generation, assistant, user


class ScriptedEngine:
    """Streams given pieces; ``fail`` is raised after the first one."""

    capabilities = frozenset({"stream", "abort"})

    def __init__(self, *pieces: str, fail: Exception | None = None, reports: bool = True) -> None:
        self.pieces, self.fail, self.reports = pieces, fail, reports
        self.asked: list[tuple[Conversation, Generation]] = []
        self.aborted: list[str] = []
        self.closed = 0

    def stream(
        self, prompt: Conversation, generation: Generation, *, request_id: str = ""
    ) -> Generator[str, None, Completion | None]:
        self.asked.append((prompt, generation))
        given = 0
        try:
            for piece in self.pieces:
                if request_id in self.aborted:
                    break
                given += 1
                yield piece
                if self.fail:
                    raise self.fail
        finally:
            self.closed += 1
        reason = "abort" if request_id in self.aborted else "stop"
        completion = Completion(text="", ids=(1,) * given, logprobs=(0.0,) * given, finish_reason=reason)  # type: ignore[arg-type]
        return completion if self.reports else None

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def generate(self, prompts: Sequence[Conversation], generation: Generation) -> list[Completion]:
        raise AssertionError("a chat streams")

    score = generate


def session_with(*pieces: str, **kwargs: Any) -> ChatSession:
    return ChatSession(ChatModel(ScriptedEngine(*pieces, **kwargs), "model"))


def drain(answer: Generator[str, None, Reply]) -> Reply:
    while True:
        try:
            next(answer)
        except StopIteration as end:
            return end.value


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "my cat.jpg"
    PIL.Image.new("RGB", (64, 48), (200, 100, 50)).save(path)
    return path


# --- the session --------------------------------------------------------------------------------------------------


def test_a_turn_sends_pictures_then_text_and_keeps_both(cat: Path) -> None:
    session = session_with("a ", "cat")
    session.attach(cat)
    reply = drain(session.ask("what is this?"))
    assert (reply.text, reply.tokens, reply.finish_reason) == ("a cat", 2, "stop")
    question, answer = session.turns
    assert question.images[0].data == cat.read_bytes()
    assert (question.text, answer.text) == ("what is this?", "a cat")
    assert session.pending == []
    drain(session.ask("sure?"))
    assert [m.role for m in session.conversation.messages] == ["user", "assistant", "user", "assistant"]


def test_the_system_message_comes_first_and_is_not_a_turn() -> None:
    session = session_with("yes")
    session.system = "be brief"
    drain(session.ask("well?"))
    prompt, _ = session.model.engine.asked[0]
    assert [m.role for m in prompt.messages] == ["system", "user"]
    session.reset()
    assert session.system == "be brief"
    assert session.turns == []


def test_a_failed_turn_is_taken_back_with_its_pictures(cat: Path) -> None:
    session = session_with("half", fail=DataError("too long"))
    session.attach(cat)
    with pytest.raises(DataError):
        drain(session.ask("what?"))
    assert session.turns == []
    assert [attachment.name for attachment in session.pending] == ["my cat.jpg"]
    assert not session.busy


def test_abort_keeps_what_was_said() -> None:
    session = session_with("one ", "two ", "three ")
    answer = session.ask("count")
    assert next(answer) == "one "
    session.abort()
    reply = drain(answer)
    assert (reply.text, reply.finish_reason, reply.tokens) == ("one ", "abort", 1)
    assert session.turns[-1] == assistant("one ")
    assert drain(session.ask("again")).finish_reason == "stop"  # the next answer is not stopped


def test_abort_works_on_an_engine_that_cannot() -> None:
    session = session_with("one ", "two ", "three ", reports=False)
    session.model.engine.abort = lambda request_id: None  # type: ignore[method-assign]
    answer = session.ask("count")
    next(answer)
    session.abort()
    assert drain(answer).text == "one "
    assert session.model.engine.closed == 1  # type: ignore[attr-defined]


def test_what_an_engine_does_not_say_is_not_made_up() -> None:
    reply = drain(session_with("a", reports=False).ask("?"))
    assert (reply.text, reply.tokens, reply.finish_reason) == ("a", None, None)


def test_abort_from_another_thread() -> None:
    session = session_with(*["x"] * 10_000)
    answer = session.ask("go")
    next(answer)
    thread = threading.Thread(target=session.abort)
    thread.start()
    thread.join()
    assert drain(answer).finish_reason == "abort"


def test_a_reader_that_leaves_ends_the_turn() -> None:
    session = session_with("one ", "two ")
    answer = session.ask("count")
    next(answer)
    answer.close()
    assert session.turns[-1] == assistant("one ")
    assert not session.busy


def test_regenerate_replaces_the_answer_with_the_next_seed() -> None:
    session = session_with("a")
    drain(session.ask("?"))
    drain(session.regenerate())
    assert [m.role for m in session.turns] == ["user", "assistant"]
    assert [generation.seed for _, generation in session.model.engine.asked] == [0, 1]
    with pytest.raises(ConfigError, match="no answer"):
        drain(session_with().regenerate())


def test_the_answer_is_limited_to_what_the_context_leaves() -> None:
    engine = ScriptedEngine("a")
    model = ChatModel(engine, "m", count=lambda prompt: 10 * len(prompt.messages), context=25)
    session = ChatSession(model, generation=Generation(max_new_tokens=100))
    drain(session.ask("one"))
    assert engine.asked[0][1].max_new_tokens == 15
    assert session.used() == 20
    with pytest.raises(DataError, match="30 tokens and the model takes 25"):
        drain(session.ask("two"))
    assert len(session.turns) == 2


def test_speed_is_of_the_tokens_after_the_first() -> None:
    assert Reply("x", 11, 1.5, 0.5, "stop").tokens_per_second == pytest.approx(10)
    assert Reply("x", 1, 1.5, 0.5, "stop").tokens_per_second is None
    assert Reply("x", None, 1.5, 0.5, "stop").tokens_per_second is None


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\x1b[31mb", "a[31mb"),
        ("\x1b]52;c;ZXZpbA==\x07", "]52;c;ZXZpbA=="),
        ("tab\tline\n", "tab\tline\n"),
        ("\x9b2J\x7f\x00", "2J"),
        ("evil\u202egpj.exe", "evilgpj.exe"),
        ("漢字 naïve 🐱", "漢字 naïve 🐱"),
        ("👩\u200d🚒", "👩\u200d🚒"),  # joiners belong to a picture
    ],
)
def test_control_characters_never_reach_the_terminal(raw: str, shown: str) -> None:
    assert clean(raw) == shown
    assert drain(session_with(raw).ask("?")).text == shown


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", "-1"), ("temperature", "nan"), ("top_p", "0"), ("top_k", "1.5"), ("max_new_tokens", "0")],
)
def test_impossible_settings_are_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        changed(Generation(), key, value)


def test_settings_know_their_names() -> None:
    assert changed(Generation(), "max-new-tokens", "7").max_new_tokens == 7
    with pytest.raises(ConfigError, match="Did you mean 'temperature'"):
        changed(Generation(), "temprature", "1")


# --- pictures that are none ---------------------------------------------------------------------------------------


def bad_pictures(folder: Path) -> dict[str, str]:
    """Path → what the error must say."""
    (folder / "text.jpg").write_text("just words, no picture at all\n")
    good = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 80).save(good, "PNG")
    (folder / "cut.png").write_bytes(good.getvalue()[:600])
    (folder / "huge.png").write_bytes(_png_header(60_000, 60_000))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "folder.jpg").mkdir()
    return {
        "gone.jpg": "no such file",
        "text.jpg": "text file",
        "cut.png": "damaged",
        "huge.png": "too large",
        "empty.jpg": "empty",
        "folder.jpg": "not a file",
    }


def _png_header(width: int, height: int) -> bytes:
    """A file of a hundred bytes that claims to be a very large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_a_wrong_picture_is_an_error_when_it_is_attached(tmp_path: Path) -> None:
    session = session_with()
    for name, reason in bad_pictures(tmp_path).items():
        with pytest.raises(DataError, match=reason) as caught:
            session.attach(tmp_path / name)
        assert name in str(caught.value)
    assert session.pending == []


# --- paths in text ------------------------------------------------------------------------------------------------


def test_dropped_files_in_every_spelling_of_a_terminal(cat: Path, tmp_path: Path) -> None:
    plain = tmp_path / "dog.png"
    PIL.Image.new("RGB", (4, 4)).save(plain)
    escaped = str(cat).replace(" ", "\\ ")
    for text, files in {
        f"'{cat}'": [cat],
        f'"{cat}" ': [cat],
        escaped: [cat],
        cat.as_uri(): [cat],
        f"{escaped} {plain}": [cat, plain],
        f"'{cat}'\n'{plain}'\n": [cat, plain],
    }.items():
        assert leading_images(text) == (files, ""), text
    assert leading_images(f"{plain} what is this?") == ([plain], "what is this?")


def test_text_that_only_looks_like_a_path_stays_text(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("hello")
    for text in ["what's this?", "dog.png", "/gone/cat.jpg", f"{tmp_path}", f"{tmp_path}/notes", "~", "'open", "a\0b"]:
        assert leading_images(text) == ([], text)
    renamed = tmp_path / "picture"
    PIL.Image.new("RGB", (4, 4)).save(renamed, "PNG")
    assert leading_images(str(renamed)) == ([renamed], "")  # by its first bytes


def test_command_arguments_are_paths(cat: Path) -> None:
    assert split_paths(str(cat)) == [str(cat)]  # one file with a blank in its name
    assert split_paths(f"'{cat}' b.png") == [str(cat), "b.png"]
    assert split_paths("") == []


# --- commands -----------------------------------------------------------------------------------------------------


def run_line(line: str, session: ChatSession, known: dict[str, Command] | None = None) -> str:
    found = parse(line, known or commands())
    assert found is not None
    command, arguments = found
    assert command.run is not None
    return command.run(arguments, session)


def test_commands_change_the_session(cat: Path) -> None:
    session = session_with("a")
    assert run_line(f"/image {cat}", session) == "attached my cat.jpg, 64 x 48"
    assert "pending 1 my cat.jpg" in run_line("/images", session)
    assert "removed" in run_line("/images remove 1", session)
    assert session.pending == []
    assert "temperature = 0.5" in run_line("/set temperature=0.5 seed=3", session)
    assert (session.generation.temperature, session.generation.seed) == (0.5, 3)
    assert run_line("/system be brief", session) == "system message: be brief"
    assert run_line("/system none", session) == "no system message"
    drain(session.ask("?"))
    run_line("/new", session)
    assert session.turns == []


@pytest.mark.parametrize("line", ["/image", "/images remove 1", "/images sort", "/set x", "/export", "/export a.txt"])
def test_wrong_arguments_are_explained(line: str) -> None:
    with pytest.raises(ConfigError):
        run_line(line, session_with())


def test_unknown_commands_and_paths() -> None:
    with pytest.raises(MissingError, match="Did you mean 'image'"):
        parse("/imag cat.jpg", commands())
    assert parse("/somewhere/cat.jpg what is this?", commands()) is None
    assert parse("hello", commands()) is None
    assert all(command.title in help_text(commands()) for command in BUILT_IN)


def test_plugins_add_commands_and_cannot_break_the_chat() -> None:
    class Options(BaseModel):
        pass

    def shout(config: Options) -> Callable[[str, ChatSession], str]:
        return lambda arguments, session: f"{arguments.upper()} {len(session.turns)}"

    def broken(config: Options) -> Callable[[str, ChatSession], str]:
        raise RuntimeError("oh no")

    registry = Registry.from_specs(
        [
            chat_command("shout", config=Options, build=shout, summary="louder"),
            chat_command("broken", config=Options, build=broken),
            chat_command("quit", config=Options, build=broken),
        ]
    )
    warnings: list[str] = []
    known = commands(registry, warnings.append)
    assert run_line("/shout hey", session_with(), known) == "HEY 0"
    with pytest.raises(GhostVisError, match=r"'/broken' .* RuntimeError: oh no"):
        run_line("/broken", session_with(), known)
    assert known["quit"].run is None
    assert warnings == ["chat command '/quit' of a plugin is left out: the name is taken"]


def test_completion_of_names_settings_and_files(cat: Path, tmp_path: Path) -> None:
    known = commands()
    assert [s.text for s in complete("/im", known)] == ["/image ", "/images "]
    assert [s.text for s in complete("/set te", known)] == ["/set temperature="]
    assert [s.text for s in complete("/set seed=1 top", known)] == ["/set seed=1 top_k=", "/set seed=1 top_p="]
    (tmp_path / "sub").mkdir()
    (tmp_path / "notes.txt").touch()
    found = complete(f"/image {tmp_path}/", known)
    assert [s.label for s in found] == ["sub/", "my cat.jpg"]
    assert split_paths(found[1].text.removeprefix("/image ")) == [str(cat)]
    assert [s.label for s in complete(f"/image {tmp_path}/my", known)] == ["my cat.jpg"]
    for nothing in ("", "hello", "/quit", "/image /gone/", "/help x", "/set temperature=0"):
        assert complete(nothing, known) == [], nothing


def test_export_is_readable_and_complete(cat: Path, tmp_path: Path) -> None:
    session = session_with("a **cat**")
    session.attach(cat)
    drain(session.ask("what is this?"))
    run_line(f"/export {tmp_path}/chat.md", session)
    assert "[image: my cat.jpg]\n\nwhat is this?" in (tmp_path / "chat.md").read_text()
    run_line(f"/export {tmp_path}/chat.json", session)
    content = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert content[0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert content[1] == {"role": "assistant", "content": [{"type": "text", "text": "a **cat**"}]}
    with pytest.raises(DataError, match="exists already"):
        run_line(f"/export {tmp_path}/chat.md", session)


# --- which model --------------------------------------------------------------------------------------------------


def test_the_model_is_named_by_folder_run_or_latest(tmp_path: Path) -> None:
    model = tmp_path / "runs" / "first" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    runs = tmp_path / "runs"
    assert resolve_model(str(model), runs) == resolve_model(str(model.parent), runs) == model
    assert resolve_model("first", runs) == model
    with pytest.raises(MissingError, match="Did you mean 'first'"):
        resolve_model("frist", runs)
    with pytest.raises(MissingError, match="speedrun"):
        resolve_model(None, runs)
    (runs / "latest").symlink_to("first/model")
    assert resolve_model(None, runs).resolve() == model
    (runs / "other").mkdir()
    with pytest.raises(MissingError, match=r"without config\.json"):
        resolve_model(str(runs / "other"), runs)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def model_dir(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, tiny_config: Any) -> Path:
    from components.weights import save_model

    folder = tmp_path / "runs" / "tiny" / "model"
    return save_model(folder, tiny_model, tiny_tokenizer, tiny_config)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """A model directory whose engine says what a test wants; returns the arguments that choose it."""
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def say(*pieces: str, **kwargs: Any) -> list[str]:
        engine = ScriptedEngine(*pieces, **kwargs)
        monkeypatch.setattr("ghostvis_cli.models.load_chat_model", lambda *_: ChatModel(engine, "scripted"))
        return ["chat", "--model", str(folder)]

    return say


def feed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_one_answer_on_stdout_and_nothing_else(scripted: Any, cat: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ghostvis([*scripted("a \x1b[1m", "cat"), "--image", str(cat), "--prompt", "what is this?"]) == 0
    out, _ = capfd.readouterr()
    assert out == "a [1mcat\n"


def test_json_answer(scripted: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert ghostvis([*scripted("yes"), "--prompt", "?", "--json", "--temperature", "0.5"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["answer"], document["model"], document["tokens"]) == ("yes", "scripted", 1)
    assert document["finish_reason"] == "stop"
    assert document["seconds"] >= 0
    assert document["generation"]["temperature"] == 0.5


def test_lines_of_stdin_are_a_conversation(
    scripted: Any, cat: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    feed(monkeypatch, f"hello\n\n'{cat}' what is this?\n/images\n/regen\n/quit\nnever read\n")
    arguments = scripted("a cat")
    assert ghostvis(arguments) == 0
    out, err = capfd.readouterr()
    assert out == "a cat\n" * 3
    assert "my cat.jpg" in err


def test_json_lines(scripted: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    feed(monkeypatch, "one\ntwo\n")
    assert ghostvis([*scripted("a"), "--json"]) == 0
    assert [json.loads(line)["answer"] for line in capfd.readouterr().out.splitlines()] == ["a", "a"]


def test_mistakes_end_a_pipe_with_their_exit_code(
    scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    feed(monkeypatch, "/image gone.jpg\nhello\n")
    assert ghostvis(scripted("a")) == 6
    for name in bad_pictures(tmp_path):
        assert ghostvis([*scripted("a"), "--image", str(tmp_path / name), "--prompt", "?"]) == 6
        out, err = capfd.readouterr()
        assert out == ""
        assert name in err.splitlines()[-1] or name in err.splitlines()[-2]
        assert "Traceback" not in err
    assert ghostvis([*scripted("a"), "--prompt", "?", "--top-p", "7"]) == 3
    assert ghostvis([*scripted("a", fail=DataError("does not fit")), "--prompt", "?"]) == 6


def test_no_model_names_the_way_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["chat", "--prompt", "hi"], ["eval", "easy_vqa"]):
        assert ghostvis(arguments) == 4
        assert "ghostvis speedrun" in capfd.readouterr().err


def test_a_closed_pipe_is_no_error(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        monkeypatch.setattr("sys.stdout", broken)
        assert ghostvis([*scripted("a", "b"), "--prompt", "?"]) == 0


def test_a_real_model_answers_on_the_command_line(
    model_dir: Path, cat: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["chat", "--model", str(model_dir), "--image", str(cat), "--max-new-tokens", "5", "--device", "cpu"]
    assert ghostvis([*arguments, "--prompt", "what is it?", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["finish_reason"] in ("stop", "length")
    assert ghostvis([*arguments, "--prompt", "what is it?"]) == 0
    assert capfd.readouterr().out == document["answer"] + "\n"
    monkeypatch.chdir(model_dir.parents[2])
    assert ghostvis(["chat", "--model", "tiny", "--prompt", "x " * 1000, "--device", "cpu"]) == 6  # too long


def test_the_module_is_light() -> None:
    heavy = "torch timm textual pydantic rich.progress PIL".split()  # noqa: SIM905
    code = f"import sys, ghostvis_cli.chat, ghostvis_cli.evaluate; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert chat_module.register is not None


def test_user_message_shape_is_what_data_sets_train_on(cat: Path) -> None:
    session = session_with("a")
    attachment = session.attach(cat)
    drain(session.ask("what is this?"))
    assert session.turns[0] == user(attachment.image, "what is this?")
