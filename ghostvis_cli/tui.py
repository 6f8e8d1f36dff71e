"""The full-screen chat: a conversation about pictures that shows the pictures.

Two threads beside the screen: one loads the model, then one at a time draws an answer. They only ever put things
into a queue of the screen's event loop, so a slow screen cannot slow the model down, and a screen that is gone
cannot hang it. The engine behind the session is anything with the engine's interface; tests script one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import LoadingIndicator, Markdown, Static, TextArea

from ghostvis_plugins.errors import ConfigError, GhostVisError

from .chat_commands import Command, commands, parse
from .chat_complete import complete
from .chat_paths import leading_images
from .chat_session import Answer, Attachment, ChatSession
from .chat_session import Reply as Finished
from .tui_widgets import Chips, Composer, Help, Note, Question, Reply, Suggestions

HINTS = "F1 help  ^Q quit"
HINTS_BUSY = "Esc stop"
TALL = 32  # rows of a screen that has room for previews above the line to write on


class ChatApp(App[None]):
    """``load`` runs in a thread and gives the session; a mistake in it ends the app and is kept as ``failure``."""

    CSS_PATH = "tui.tcss"
    TITLE = "GhostVis"
    BINDINGS: ClassVar[list[Any]] = [
        Binding("f1", "help", "Help", priority=True),
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+r", "regenerate", "Again", priority=True),
        Binding("pageup", "scroll(-1)", "Up", priority=True, show=False),
        Binding("pagedown", "scroll(1)", "Down", priority=True, show=False),
    ]

    def __init__(
        self,
        load: Callable[[], ChatSession],
        *,
        commands: Mapping[str, Command] | None = None,
        loading: str = "loading the model",
    ) -> None:
        super().__init__()
        self.session: ChatSession | None = None
        self.failure: BaseException | None = None
        self._load = load
        self._loading = loading
        self._commands = commands if commands is not None else default_commands()
        self._thread: threading.Thread | None = None  # draws the answer that is on its way
        self._answering = False  # from the question on, which is before the thread has begun

    def compose(self) -> ComposeResult:
        with Vertical(id="loading"):
            yield LoadingIndicator()
            yield Static(self._loading, markup=False)
        yield VerticalScroll(id="transcript")
        yield Chips(id="chips")
        yield Suggestions()
        with Horizontal(id="entry"):
            yield Static(">", id="mark")
            yield Composer()
        with Horizontal(id="status"):
            yield Static("", id="figures", markup=False)
            yield Static(HINTS, id="hints", markup=False)

    # --- loading ----------------------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        for name in ("#transcript", "#entry"):
            self.query_one(name).display = False
        self._open()

    @work
    async def _open(self) -> None:
        session = await self._in_thread(self._load)
        if not isinstance(session, ChatSession):
            return
        self.session = session
        self.query_one("#loading").display = False
        for name in ("#transcript", "#entry"):
            self.query_one(name).display = True
        transcript = self.query_one("#transcript", VerticalScroll)
        transcript.anchor()
        await transcript.mount(Static(WELCOME.format(model=session.model.name), id="welcome", markup=False))
        self._show_pending()
        self._show_figures()
        self.query_one(Composer).focus()

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """The result of ``function``, run in a thread that never outlives its welcome; ends the app when it fails."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        result: list[Any] = [None]

        def run() -> None:
            try:
                result[0] = function()
            except BaseException as error:
                self.failure = error
            _post(loop, done.set)

        threading.Thread(target=run, daemon=True, name="ghostvis-load").start()
        await done.wait()
        if self.failure is not None:
            self.exit()
        return result[0]

    # --- what the user does -----------------------------------------------------------------------------------------

    @on(Composer.Submitted)
    async def _submitted(self, event: Composer.Submitted) -> None:
        line = event.text.strip()
        session, composer = self.session, self.query_one(Composer)
        if session is None or not (line or session.pending):
            return
        if self._answering and not line.startswith("/"):
            self.notify("The answer is still on its way; Esc stops it.", severity="warning")
            return
        composer.write("")
        if line:
            composer.remember(line)
        await self._guarded(lambda: self._act(line))

    async def _act(self, line: str) -> None:
        session = self._chat()
        command = parse(line, self._commands)
        if command is not None:
            await self._run(*command)
            return
        paths, text = leading_images(line)
        for path in paths:
            session.attach(path)
        if not text and not session.pending:
            return
        if not text and paths:
            self._show_pending()
            return
        await self._ask(text)

    async def _run(self, command: Command, arguments: str) -> None:
        session = self._chat()
        if command.name == "quit":
            self.exit()
        elif command.name == "help":
            self.action_help()
        elif command.name == "regen":
            await self._regenerate()
        elif self._answering and command.name == "new":
            self.notify("The answer is still on its way; Esc stops it.", severity="warning")
        elif command.run is not None:
            text = command.run(arguments, session)
            if command.name == "new":
                await self.query_one("#transcript").remove_children()
            if text and command.name != "image":  # the chips show those
                await self._note(text)
        self._show_pending()
        self._show_figures()

    @on(Composer.Dropped)
    async def _dropped(self, event: Composer.Dropped) -> None:
        await self._guarded(lambda: self._attach_dropped(event.paths))

    async def _attach_dropped(self, paths: list[str]) -> None:
        for path in paths:
            self._chat().attach(path)
        self._show_pending()

    @on(TextArea.Changed, "#composer")
    def _changed(self, event: TextArea.Changed) -> None:
        found = complete(event.text_area.text, self._commands)
        self.query_one(Suggestions).show(found)
        self.query_one(Composer).suggesting = bool(found)

    @on(Composer.Completing)
    def _completing(self, event: Composer.Completing) -> None:
        suggestions = self.query_one(Suggestions)
        if event.what == "next":
            suggestions.action_cursor_down()
        elif event.what == "previous":
            suggestions.action_cursor_up()
        elif event.what == "accept" and suggestions.chosen:
            self.query_one(Composer).write(suggestions.chosen.text)
        elif event.what == "close":
            suggestions.show([])
            self.query_one(Composer).suggesting = False

    @on(Suggestions.OptionSelected)
    def _picked(self) -> None:
        self._completing(Composer.Completing("accept"))
        self.query_one(Composer).focus()

    def action_help(self) -> None:
        self.push_screen(Help(self._commands))

    def action_stop(self) -> None:
        if self.session is not None and self._answering:
            self.session.abort()

    async def action_regenerate(self) -> None:
        if self.session is not None:
            await self._guarded(self._regenerate)

    def action_scroll(self, pages: int) -> None:
        transcript = self.query_one("#transcript")
        transcript.scroll_page_up() if pages < 0 else transcript.scroll_page_down()

    # --- answers ----------------------------------------------------------------------------------------------------

    async def _ask(self, text: str) -> None:
        session = self._chat()
        pictures = list(enumerate(session.pending, start=len(session.attachments) + 1))
        await self.query_one("#transcript").mount(Question(text, pictures, rows=8 if self.size.height < TALL else 12))
        self._answering = True
        self._answer(session.ask(text), on_failure=lambda: self._give_back(text))
        self._show_pending(())

    def _give_back(self, text: str) -> None:
        """The question was not answered: let it be sent again."""
        composer = self.query_one(Composer)
        if not composer.text:
            composer.write(text)

    async def _regenerate(self) -> None:
        session = self._chat()
        if self._answering:
            self.notify("The answer is still on its way; Esc stops it.", severity="warning")
            return
        if not session.turns:
            raise ConfigError("there is no answer to draw again")
        if session.generation.temperature == 0:
            self.notify("At temperature 0 the answer is always the same: /set temperature=0.7")
        old = self.query(Reply).last()
        old.display = False
        self._answering = True
        self._answer(session.regenerate(), on_failure=lambda: setattr(old, "display", True))

    @work(exclusive=True, group="answer")
    async def _answer(self, answer: Answer, *, on_failure: Callable[[], None]) -> None:
        """Show an answer while a thread draws it."""
        view = Reply()
        await self.query_one("#transcript").mount(view)
        self._busy(True)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | Finished | BaseException]()

        def draw() -> None:
            try:
                while True:
                    _post(loop, pieces.put_nowait, next(answer))
            except StopIteration as end:
                _post(loop, pieces.put_nowait, end.value)
            except BaseException as error:
                _post(loop, pieces.put_nowait, error)

        self._thread = threading.Thread(target=draw, daemon=True, name="ghostvis-answer")
        self._thread.start()
        stream = Markdown.get_stream(view)
        while isinstance(item := await pieces.get(), str):
            await stream.write(item)
        await stream.stop()
        self._answering = False
        self._busy(False)
        if isinstance(item, BaseException):
            await view.remove()
            on_failure()
            await self._report(item)
            self._show_pending()
        elif item.finish_reason in ("abort", "length"):
            text = "stopped" if item.finish_reason == "abort" else "cut at max_new_tokens; /set max_new_tokens=N"
            await self._note(text)
        elif not item.text.strip():
            await self._note("(an empty answer)")

    def on_unmount(self) -> None:
        """Let a running answer end before the interpreter does."""
        if self.session is not None and self._thread is not None and self._thread.is_alive():
            self.session.abort()
            self._thread.join(timeout=10)

    # --- what is shown ----------------------------------------------------------------------------------------------

    def _busy(self, busy: bool) -> None:
        self.query_one("#entry").set_class(busy, "busy")
        self.query_one("#hints", Static).update(HINTS_BUSY if busy else HINTS)
        self._show_figures(busy=busy)

    def _show_figures(self, *, busy: bool = False) -> None:
        self.query_one("#figures", Static).update("answering..." if busy else figures(self._chat()))

    def _show_pending(self, pending: tuple[Attachment, ...] | None = None) -> None:
        shown = self._chat().pending if pending is None else pending
        self.query_one(Chips).show(shown, rows=6 if self.size.height >= TALL else 0)

    async def _note(self, text: str, *, error: bool = False) -> None:
        await self.query_one("#transcript").mount(Note(text, error=error))

    async def _guarded(self, action: Callable[[], Any]) -> None:
        """Do what a user asked for; a mistake is a line in the conversation, anything else is our defect."""
        try:
            await action()
        except GhostVisError as error:
            await self._report(error)
            self._show_pending()

    async def _report(self, error: BaseException) -> None:
        if isinstance(error, GhostVisError):
            await self._note(str(error), error=True)
        else:
            self.failure = error
            self.exit()

    def _chat(self) -> ChatSession:
        assert self.session is not None, "nothing can be asked for before the model is loaded"
        return self.session


WELCOME = "{model} is ready. Ask it something, show it a picture, or press F1."


def default_commands() -> Mapping[str, Command]:
    """The built-in commands, for an app without a registry."""
    return commands()


def figures(session: ChatSession) -> str:
    """The left half of the status bar: model, speed, wait, context."""
    parts = [Path(session.model.name).parent.name if session.model.name.endswith("/model") else session.model.name]
    last, used = session.last, session.used()
    if last is not None and last.tokens_per_second is not None:
        parts.append(f"{last.tokens_per_second:.0f} tok/s")
    if last is not None and last.first_token is not None:
        parts.append(f"first {last.first_token:.2f} s")
    if used is not None:
        parts.append(f"context {used}/{session.model.context}" if session.model.context else f"context {used}")
    return " · ".join(parts)


def _post(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    """Run ``call`` in the screen's loop, if there is still one: nobody waits for a screen that was left."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise
