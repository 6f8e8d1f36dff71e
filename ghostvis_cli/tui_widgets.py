"""The parts of the full-screen chat: the line to write on, the turns above it, the help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Key, Paste
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Markdown, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from .chat_commands import Command, describe
from .chat_complete import Suggestion
from .chat_paths import leading_images
from .chat_session import Attachment
from .tui_preview import Preview

KEYS = (
    ("Enter", "send"),
    ("Ctrl+J", "a new line in the message"),
    ("Tab", "complete a command, a file, a setting"),
    ("Up / Down", "earlier messages"),
    ("Esc", "stop the answer"),
    ("Ctrl+R", "draw the last answer again"),
    ("PageUp / PageDown", "scroll the conversation"),
    ("Ctrl+P", "palette: themes and more"),
    ("F1", "this help"),
    ("Ctrl+Q", "leave"),
)


class Composer(TextArea):
    """Where a message is written: Enter sends, Up and Down walk through earlier ones, dropped pictures are caught."""

    class Submitted(Message):
        """Enter was pressed."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Dropped(Message):
        """Paths of pictures were pasted, which is how a terminal delivers dropped files."""

        def __init__(self, paths: Sequence[str]) -> None:
            super().__init__()
            self.paths = list(paths)

    class Completing(Message):
        """A key that belongs to the list of suggestions: "next", "previous", "accept" or "close"."""

        def __init__(self, what: str) -> None:
            super().__init__()
            self.what = what

    def __init__(self) -> None:
        placeholder = "Ask something. Drop a picture here, or type /image PATH"
        super().__init__(
            placeholder=placeholder, id="composer", soft_wrap=True, compact=True, highlight_cursor_line=False
        )
        self.suggesting = False  # a list of suggestions is open: it gets the arrow keys
        self._history: list[str] = []
        self._place = 0  # in the history; its length is the draft
        self._draft = ""

    def remember(self, text: str) -> None:
        """Add a message to the history."""
        if not self._history or self._history[-1] != text:
            self._history.append(text)
        self._place = len(self._history)

    def write(self, text: str) -> None:
        """Replace what is written, with the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    async def _on_key(self, event: Key) -> None:
        action = self._action_of(event.key)
        if action is None:
            return  # Textual goes on to TextArea's own handler by itself
        event.stop()
        event.prevent_default()
        if action == "send":
            self.post_message(self.Submitted(self.text))
        elif action == "newline":
            self.insert("\n")
        elif action == "earlier":
            self._walk(-1)
        elif action == "later":
            self._walk(1)
        elif action != "nothing":
            self.post_message(self.Completing(action))

    def _action_of(self, key: str) -> str | None:
        if self.suggesting and key in ("up", "down", "tab", "escape"):
            return {"up": "previous", "down": "next", "tab": "accept", "escape": "close"}[key]
        if key == "enter":
            return "send"
        if key in ("ctrl+j", "shift+enter", "alt+enter"):
            return "newline"
        if key == "tab":
            return "nothing"  # focus has nowhere to go
        row = self.cursor_location[0]
        if key == "up" and row == 0:
            return "earlier"
        if key == "down" and row == self.document.line_count - 1:
            return "later"
        return None

    def _walk(self, step: int) -> None:
        place = self._place + step
        if not 0 <= place <= len(self._history):
            return
        if self._place == len(self._history):
            self._draft = self.text
        self._place = place
        self.write(self._history[place] if place < len(self._history) else self._draft)

    def on_paste(self, event: Paste) -> None:
        # Textual calls the handler of every class, so this runs beside TextArea's own: prevented, or text comes twice.
        paths, rest = leading_images(event.text)
        if paths and not rest:
            event.prevent_default()
            event.stop()
            self.post_message(self.Dropped([str(path) for path in paths]))


class Suggestions(OptionList):
    """What could complete the line; shown while there is something."""

    def __init__(self) -> None:
        super().__init__(id="suggestions")
        self.can_focus = False
        self.found: list[Suggestion] = []

    def show(self, found: Sequence[Suggestion]) -> None:
        """Offer ``found``; hide when it is empty."""
        self.found = list(found)
        self.clear_options()
        width = max((len(suggestion.label) for suggestion in found), default=0)
        for suggestion in found:
            label = suggestion.label.ljust(width)
            # Styled pieces, not markup: a file may be called "[red].png".
            self.add_option(Option(Text.assemble(label, ("  " + suggestion.note, "dim"))))
        self.highlighted = 0 if found else None
        self.display = bool(found)

    @property
    def chosen(self) -> Suggestion | None:
        """The highlighted suggestion."""
        return self.found[self.highlighted] if self.highlighted is not None and self.found else None


class Chips(Horizontal):
    """The pictures that wait for the next message."""

    def show(self, pending: Sequence[Attachment], *, rows: int) -> None:
        """One chip per picture, with a preview of ``rows`` rows above it when there is room."""
        self.remove_children()
        for number, attachment in enumerate(pending, start=1):
            label = Static(chip(number, attachment), classes="chip", markup=False)
            preview = (Preview(attachment.thumbnail, columns=24, rows=rows),) if rows else ()
            self.mount(Vertical(*preview, label, classes="pending"))
        self.display = bool(pending)


def chip(number: int, attachment: Attachment) -> str:
    """``[image 1: cat.jpg, 640 x 480]``."""
    return f"[image {number}: {describe(attachment)}]"


class Question(Vertical):
    """What the user said: pictures, then text."""

    def __init__(self, text: str, pictures: Sequence[tuple[int, Attachment]], *, rows: int) -> None:
        super().__init__(classes="question")
        self._text, self._pictures, self._rows = text, pictures, rows

    def compose(self) -> ComposeResult:
        if self._pictures:
            with Horizontal(classes="pictures"):
                for number, attachment in self._pictures:
                    with Vertical(classes="picture"):
                        yield Preview(attachment.thumbnail, columns=2 * self._rows, rows=self._rows)
                        yield Static(chip(number, attachment), classes="chip", markup=False)
        if self._text:
            yield Static(self._text, classes="text", markup=False)


class Reply(Markdown):
    """What the model said. Links are not opened: they are the model's words, not anybody's recommendation."""

    def __init__(self) -> None:
        super().__init__(classes="reply", open_links=False)


class Note(Static):
    """A line from the program itself."""

    def __init__(self, text: str, *, error: bool = False) -> None:
        super().__init__(text, classes="error note" if error else "note", markup=False)


class Help(ModalScreen[None]):
    """Keys and commands."""

    BINDINGS: ClassVar[list[Any]] = [("escape,f1,q,enter", "dismiss", "Close")]

    def __init__(self, commands: Mapping[str, Command]) -> None:
        super().__init__()
        self._commands = commands

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static("Keys", classes="heading")
            yield Static(_columns(KEYS), markup=False)
            yield Static("Commands", classes="heading")
            yield Static(_columns([(c.title, c.summary) for c in self._commands.values()]), markup=False)
            yield Static("Esc closes this", classes="hint")


def _columns(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left.ljust(width)}  {right}" for left, right in rows)
