"""The full-screen chat, driven by keys: what is typed, pasted and shown, with an engine that follows a script."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from textual.events import Paste
from textual.pilot import Pilot
from textual.widgets import Static

from ghostvis_cli.chat_session import ChatModel, ChatSession
from ghostvis_cli.tui import ChatApp
from ghostvis_cli.tui_preview import Preview, half_blocks
from ghostvis_cli.tui_widgets import Chips, Composer, Help, Note, Question, Reply, Suggestions
from ghostvis_plugins import DataError, MissingError
from ghostvis_plugins.types import Completion, Conversation, Generation

SIZE = (100, 34)


class ScriptedEngine:
    """Streams the words of its answers in turn; waits before the word that ``hold`` names until it is released."""

    capabilities = frozenset({"stream", "abort", "images"})

    def __init__(self, *answers: str | Exception, hold: int | None = None) -> None:
        self.answers, self.hold = list(answers), hold
        self.release = threading.Event()
        self.asked: list[Conversation] = []
        self.aborted = threading.Event()

    def stream(
        self, prompt: Conversation, generation: Generation, *, request_id: str = ""
    ) -> Generator[str, None, Completion]:
        self.asked.append(prompt)
        self.aborted.clear()
        answer = self.answers[(len(self.asked) - 1) % len(self.answers)]
        if isinstance(answer, Exception):
            raise answer
        words = [f"{word} " for word in answer.split(" ")]
        given = 0
        for number, word in enumerate(words):
            while number == self.hold and not (self.release.is_set() or self.aborted.is_set()):
                time.sleep(0.005)
            if self.aborted.is_set():
                break
            given += 1
            yield word
        reason = "abort" if self.aborted.is_set() else "stop"
        return Completion(text=answer, ids=(1,) * given, logprobs=(0.0,) * given, finish_reason=reason)  # type: ignore[arg-type]

    def abort(self, request_id: str) -> None:
        self.aborted.set()

    def generate(self, prompts: Sequence[Conversation], generation: Generation) -> list[Completion]:
        raise AssertionError("a chat streams")

    score = generate


def app_on(engine: Any, **kwargs: Any) -> ChatApp:
    model = ChatModel(engine, "runs/first/model", lambda prompt: 7 * len(prompt.messages), 512)
    return ChatApp(lambda: ChatSession(model, **kwargs))


async def until(pilot: Pilot[None], condition: Callable[[], bool], seconds: float = 10) -> None:
    """Let the screen work until ``condition`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never happened; the screen shows {shown(pilot.app)}"
        await pilot.pause(0.01)
    await pilot.pause()


@asynccontextmanager
async def running(app: ChatApp, size: tuple[int, int] = SIZE) -> AsyncIterator[Pilot[None]]:
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.session is not None and app.query_one(Composer).has_focus)
        yield pilot


async def send(pilot: Pilot[None], line: str, *, wait: bool = True) -> None:
    pilot.app.query_one(Composer).write(line)
    await pilot.press("enter")
    await pilot.pause()
    if wait:
        await until(pilot, lambda: not pilot.app._answering)  # type: ignore[attr-defined]


def shown(app: Any) -> list[str]:
    """What the conversation shows, by kind."""
    texts = []
    for widget in app.query_one("#transcript").children:
        if isinstance(widget, Reply):
            if widget.display:
                texts.append(f"reply: {widget.source.strip()}")
        elif isinstance(widget, Question):
            texts.append("question: " + " | ".join(str(child.content) for child in widget.query(Static)))
        elif isinstance(widget, Note):
            texts.append(f"{'error' if widget.has_class('error') else 'note'}: {widget.content}")
    return texts


def status(app: Any) -> str:
    return str(app.query_one("#figures", Static).content)


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    path = tmp_path / "my cat.jpg"
    PIL.Image.new("RGB", (64, 48), (200, 100, 50)).save(path)
    return path


async def test_a_question_is_typed_and_answered() -> None:
    engine = ScriptedEngine("It is **a cat**.")
    app = app_on(engine)
    async with running(app) as pilot:
        await pilot.press(*"what is it?", "enter")
        await until(pilot, lambda: len(shown(app)) == 2 and not app._answering)
        assert shown(app) == ["question: what is it?", "reply: It is **a cat**."]
        assert app.query_one(Composer).text == ""
        assert engine.asked[0].messages[-1].text == "what is it?"
        assert "tok/s" in status(app)
        assert "context 14/512" in status(app)


async def test_the_answer_appears_while_it_is_drawn() -> None:
    engine = ScriptedEngine("one two three", hold=2)
    app = app_on(engine)
    async with running(app) as pilot:
        await send(pilot, "count", wait=False)
        await until(pilot, lambda: "reply: one two" in shown(app))
        assert "answering" in status(app)
        await send(pilot, "more?", wait=False)  # not sent while an answer is on its way, and not lost
        assert app.query_one(Composer).text == "more?"
        assert len(engine.asked) == 1
        engine.release.set()
        await until(pilot, lambda: "reply: one two three" in shown(app))


async def test_escape_stops_the_answer_and_keeps_what_was_said() -> None:
    engine = ScriptedEngine("one two three", hold=2)
    app = app_on(engine)
    async with running(app) as pilot:
        await send(pilot, "count", wait=False)
        await until(pilot, lambda: "reply: one two" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: not app._answering)
        assert shown(app)[1:] == ["reply: one two", "note: stopped"]
        assert app.session is not None
        assert app.session.turns[-1].text == "one two "


async def test_leaving_during_an_answer_ends_its_thread() -> None:
    engine = ScriptedEngine("one two three", hold=1)
    app = app_on(engine)
    async with running(app) as pilot:
        await send(pilot, "count", wait=False)
        await until(pilot, lambda: "reply: one" in shown(app))
        await send(pilot, "/quit", wait=False)
    assert engine.aborted.is_set()
    assert app._thread is not None
    assert not app._thread.is_alive()


async def test_pictures_are_dropped_shown_and_sent(cat: Path) -> None:
    engine = ScriptedEngine("a cat")
    app = app_on(engine)
    async with running(app) as pilot:
        app.post_message(Paste(f"'{cat}'\n"))
        await until(pilot, lambda: app.query_one(Chips).display)
        assert str(app.query_one(Chips).query(".chip").first(Static).content) == "[image 1: my cat.jpg, 64 x 48]"
        assert app.query_one(Chips).query(Preview)
        await send(pilot, "what is this?")
        assert shown(app)[0] == "question: [image 1: my cat.jpg, 64 x 48] | what is this?"
        assert not app.query_one(Chips).display
        assert engine.asked[0].images[0].data == cat.read_bytes()
        preview = app.query_one("#transcript").query_one(Preview)
        assert "▀" in preview.render_line(0).text
        await send(pilot, "and now?")
        assert len(engine.asked[1].images) == 1  # the picture stays in the conversation


async def test_pasted_text_is_text_and_comes_once(tmp_path: Path) -> None:
    app = app_on(ScriptedEngine("a"))
    async with running(app) as pilot:
        app.post_message(Paste(f"see {tmp_path}/cat.jpg"))
        await until(pilot, lambda: bool(app.query_one(Composer).text))
        assert app.query_one(Composer).text == f"see {tmp_path}/cat.jpg"


async def test_a_wrong_picture_is_a_line_of_the_conversation(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture, only words\n")
    app = app_on(ScriptedEngine("a"))
    async with running(app) as pilot:
        app.post_message(Paste(str(tmp_path / "text.jpg")))
        await until(pilot, lambda: len(shown(app)) == 1)
        assert shown(app)[0].startswith("error: image")
        assert "text file" in shown(app)[0]
        await send(pilot, "/image gone.png")
        assert "no such file" in shown(app)[1]
        await send(pilot, "still there?")
        assert shown(app)[-1] == "reply: a"


async def test_commands_act_on_the_session(cat: Path, tmp_path: Path) -> None:
    app = app_on(ScriptedEngine("a cat"))
    async with running(app) as pilot:
        await send(pilot, f"/image {cat}")
        await send(pilot, "what is this?")
        await send(pilot, "/set temperature=0.5")
        assert app.session is not None
        assert app.session.generation.temperature == 0.5
        await send(pilot, "/tempreature")
        assert shown(app)[-1].startswith("error: unknown command")
        await send(pilot, f"/export {tmp_path}/chat.md")
        assert "a cat" in (tmp_path / "chat.md").read_text()
        await send(pilot, "/new")
        assert app.session.turns == []
        assert [text for text in shown(app) if text.startswith(("question", "reply"))] == []


async def test_regenerate_replaces_the_answer() -> None:
    app = app_on(ScriptedEngine("first", "second"), generation=Generation(temperature=1.0))
    async with running(app) as pilot:
        await pilot.press("ctrl+r")
        await until(pilot, lambda: any("no answer" in text for text in shown(app)))
        await send(pilot, "say")
        await send(pilot, "/regen")
        await until(pilot, lambda: "reply: second" in shown(app))
        assert "reply: first" not in shown(app)
        assert app.session is not None
        assert [turn.role for turn in app.session.turns] == ["user", "assistant"]


async def test_a_question_that_failed_can_be_sent_again(cat: Path) -> None:
    engine = ScriptedEngine(DataError("it does not fit"), "now it does")
    app = app_on(engine)
    async with running(app) as pilot:
        await send(pilot, f"/image {cat}")
        await send(pilot, "what is this?")
        assert shown(app)[-1] == "error: it does not fit"
        assert app.query_one(Composer).text == "what is this?"
        assert app.query_one(Chips).display
        await pilot.press("enter")
        await until(pilot, lambda: "reply: now it does" in shown(app))
        assert len(engine.asked[1].messages) == 1
        assert len(engine.asked[1].images) == 1


async def test_history_walks_and_keeps_the_draft() -> None:
    app = app_on(ScriptedEngine("a"))
    async with running(app) as pilot:
        await send(pilot, "first")
        await send(pilot, "second")
        composer = app.query_one(Composer)
        await pilot.press(*"dra")
        for key, text in [("up", "second"), ("up", "first"), ("up", "first"), ("down", "second"), ("down", "dra")]:
            await pilot.press(key)
            assert composer.text == text
        await pilot.press("ctrl+j", *"ft")
        assert composer.text == "dra\nft"


async def test_suggestions_complete_commands_and_files(cat: Path) -> None:
    app = app_on(ScriptedEngine("a"))
    async with running(app) as pilot:
        suggestions, composer = app.query_one(Suggestions), app.query_one(Composer)
        assert not suggestions.display
        await pilot.press(*"/im")
        await until(pilot, lambda: suggestions.display)
        assert suggestions.option_count == 2
        await pilot.press("down", "tab")
        assert composer.text == "/images "
        composer.write(f"/image {cat.parent}/my")
        await until(pilot, lambda: suggestions.display)
        await pilot.press("tab", "enter")
        await until(pilot, lambda: app.query_one(Chips).display)
        await pilot.press(*"/s", "escape")
        await until(pilot, lambda: not suggestions.display)
        assert composer.text == "/s"


async def test_help_lists_keys_and_commands() -> None:
    app = app_on(ScriptedEngine("a"))
    async with running(app) as pilot:
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, Help))
        text = "\n".join(str(widget.content) for widget in app.screen.query(Static))
        assert "/image PATH..." in text
        assert "Esc" in text
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Help))


async def test_loading_shows_a_view_and_failing_to_load_ends_the_app() -> None:
    gate = threading.Event()

    def load() -> ChatSession:
        gate.wait(10)
        raise MissingError("no weights")

    app = ChatApp(load, loading="loading runs/first")
    async with app.run_test(size=SIZE) as pilot:
        assert app.query_one("#loading").display
        assert not app.query_one("#entry").display
        await pilot.press("enter", "ctrl+r", "escape")  # nothing to act on yet, and nothing happens
        gate.set()
        await until(pilot, lambda: app.failure is not None)
    assert str(app.failure) == "no weights"


async def test_control_characters_of_a_model_do_not_reach_the_screen() -> None:
    app = app_on(ScriptedEngine("\x1b[2Jgone \x1b]0;title\x07 done"))
    async with running(app) as pilot:
        await send(pilot, "?")
        assert app.session is not None
        assert "\x1b" not in app.session.turns[-1].text + "".join(shown(app)) + app.export_screenshot()


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (120, 40)])
async def test_everything_stays_on_the_screen(size: tuple[int, int], cat: Path) -> None:
    app = app_on(ScriptedEngine("a long answer " * 40))
    async with running(app, size) as pilot:
        await send(pilot, f"/image {cat}")
        await send(pilot, "what is this?")
        for name in ("#composer", "#figures"):
            region = app.query_one(name).region
            assert region.width > 0
            assert region.bottom <= size[1]
        assert app.query_one("#transcript").region.height >= 4


def test_half_blocks_show_two_pixels_per_cell() -> None:
    picture = PIL.Image.new("RGB", (2, 2))
    picture.putdata([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)])
    (strip,) = half_blocks(picture, columns=2, rows=1)
    colours = [(s.style.color.triplet.hex, s.style.bgcolor.triplet.hex) for s in strip]  # type: ignore[union-attr]
    assert colours == [("#ff0000", "#0000ff"), ("#00ff00", "#ffffff")]
    wide = half_blocks(PIL.Image.new("RGB", (400, 100)), columns=40, rows=12)
    assert (len(wide), wide[0].cell_length) == (5, 40)
    tall = half_blocks(PIL.Image.new("RGB", (1, 1000)), columns=40, rows=12)
    assert (len(tall), tall[0].cell_length) == (12, 1)


async def test_a_real_model_answers(tiny_model: Any, tiny_tokenizer: Any, cat: Path) -> None:
    from components.engines.config import Native
    from components.engines.native import build

    engine = build(Native(), model=tiny_model, tokenizer=tiny_tokenizer)
    model = ChatModel(engine, "tiny")
    app = ChatApp(lambda: ChatSession(model, generation=Generation(max_new_tokens=8)))
    async with running(app) as pilot:
        await send(pilot, f"/image {cat}")
        await send(pilot, "what is it?")
        assert app.failure is None
        assert app.session is not None
        (expected,) = engine.generate([Conversation(app.session.turns[:1])], Generation(max_new_tokens=8))  # type: ignore[arg-type]
        assert app.session.turns[-1].text == expected.text


NOISY = """
import sys, warnings, logging, threading
sys.path.insert(0, {root!r})
from ghostvis_cli.chat_session import ChatModel, ChatSession
from ghostvis_cli.tui import ChatApp

class Engine:
    capabilities = frozenset()
    def stream(self, prompt, generation, *, request_id=""):
        print("NOISE stdout"); print("NOISE stderr", file=sys.stderr); warnings.warn("NOISE warning")
        logging.getLogger().warning("NOISE logging")
        yield "the answer"
    def abort(self, request_id): pass

def load():
    print("NOISE loading")
    return ChatSession(ChatModel(Engine(), "noisy"))

ChatApp(load).run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_nothing_that_is_printed_reaches_the_terminal() -> None:
    """In a real pseudo-terminal, where a stray line would tear the screen."""
    import pty

    main, side = pty.openpty()
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", NOISY.format(root=root)], stdin=side, stdout=side, stderr=side, env=environment
    )
    os.close(side)
    try:
        seen = _read_until(main, b"is ready")
        os.write(main, b"hello\r")
        seen += _read_until(main, b"answer")
        os.write(main, b"\x11")  # Ctrl+Q
        seen += _read_until(main, None)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        os.close(main)
    assert b"NOISE" not in seen


def _read_until(terminal: int, wanted: bytes | None, seconds: float = 30) -> bytes:
    seen, end = b"", time.monotonic() + seconds
    while wanted is None or wanted not in seen:
        if not select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            raise AssertionError(f"{wanted!r} never came; the terminal shows {seen[-2000:]!r}")
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            chunk = b""
        if not chunk:
            return seen
        seen += chunk
    return seen


def test_the_app_runs_in_an_event_loop_of_its_own() -> None:
    async def leave() -> None:
        async with running(app_on(ScriptedEngine("a"))):
            pass

    asyncio.run(leave())
