"""A conversation with a model: what the one-shot answer, the line chat, the full-screen chat and a server share.

Torch-free. A session holds the turns, the pictures waiting for the next message and how answers are drawn; it
talks to anything that is an :class:`~ghostvis_plugins.protocols.Engine`. It knows nothing about a screen.

Notable choices
---------------
* A picture is read and decoded when it is attached. A wrong file is an error at once, and a file that changes
  later does not change what was said about it.
* A turn is atomic: when the engine fails, the question is taken back and its pictures are pending again.
* Model output is untrusted. :func:`clean` removes control characters before anything else sees an answer: an
  escape sequence in a terminal can move the cursor, set the clipboard or hide a link.
"""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ghostvis_plugins.errors import ConfigError, DataError, did_you_mean
from ghostvis_plugins.types import Conversation, Generation, Image, Message, assistant, system, user

if TYPE_CHECKING:
    import PIL.Image

    from ghostvis_plugins.protocols import Engine
    from ghostvis_plugins.types import Completion

MAX_FILE_BYTES = 64 * 1024 * 1024
THUMBNAIL = 160  # pixels, the longer side

_KEPT_CONTROLS = frozenset("\n\t")
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: str) -> str:
    """``text`` without control characters (C0 but newline and tab, DEL, C1) and bidirectional overrides."""
    return "".join(
        char for char in text if char in _KEPT_CONTROLS or (unicodedata.category(char) != "Cc" and char not in _BIDI)
    )


@dataclass(frozen=True, slots=True)
class ChatModel:
    """What a session talks to. ``count`` gives the tokens of a prompt, ``context`` the most that fit."""

    engine: Engine
    name: str
    count: Callable[[Conversation], int] | None = None
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A picture that was read and decoded: its bytes, the name people know it by, and a thumbnail to show."""

    image: Image
    name: str
    size: tuple[int, int]  # width, height in pixels
    thumbnail: PIL.Image.Image = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer. ``first_token`` and ``seconds`` are wall-clock from the question on.

    ``tokens`` and ``finish_reason`` are what the engine's completion says, None where its stream returns none.
    """

    text: str
    tokens: int | None
    seconds: float
    first_token: float | None
    finish_reason: Literal["stop", "length", "abort"] | None

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed: the tokens after the first over the time they took."""
        if self.tokens is None or self.tokens < 2 or self.first_token is None:
            return None
        return (self.tokens - 1) / max(self.seconds - self.first_token, 1e-9)


Answer = Generator[str, None, Reply]


def read_attachment(path: str | Path) -> Attachment:
    """Read and decode one picture. Raises DataError naming the file when it is not a usable one."""
    from components.images import decode

    file = Path(path).expanduser()
    if not file.exists():
        raise DataError(f"image {path}: no such file", hint="Check the path.")
    if not file.is_file():
        raise DataError(f"image {path}: is not a file")
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DataError(f"image {path}: {size / 1e6:.0f} MB; the limit is {MAX_FILE_BYTES / 1e6:.0f} MB")
    picture = decode(Image(path=str(file)))
    thumbnail = picture.copy()
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return Attachment(Image(data=file.read_bytes()), file.name, picture.size, thumbnail)


class ChatSession:
    """One conversation. Only one answer is drawn at a time; :meth:`abort` may be called from any thread."""

    def __init__(self, model: ChatModel, *, system: str = "", generation: Generation | None = None) -> None:
        self.model = model
        self.system = system
        self.generation = generation or Generation(max_new_tokens=128)
        self.turns: list[Message] = []  # user and assistant messages, without the system message
        self.pending: list[Attachment] = []
        self.attachments: dict[Image, Attachment] = {}  # every picture of the conversation
        self.last: Reply | None = None
        self._stop = threading.Event()
        self._running = threading.Lock()
        self._requests = 0

    # --- before a question --------------------------------------------------------------------------------------

    def attach(self, path: str | Path) -> Attachment:
        """Read a picture and keep it for the next message. Raises DataError."""
        attachment = read_attachment(path)
        self.pending.append(attachment)
        return attachment

    def set(self, key: str, value: str) -> None:
        """Change one field of :class:`Generation` from text. Raises ConfigError."""
        self.generation = changed(self.generation, key, value)

    def reset(self) -> None:
        """Forget the conversation; keep the system message and the settings."""
        self.turns.clear()
        self.pending.clear()
        self.attachments.clear()
        self.last = None

    @property
    def conversation(self) -> Conversation:
        """All turns, after the system message if there is one."""
        first = (system(self.system),) if self.system else ()
        return Conversation((*first, *self.turns), id="chat")

    def used(self) -> int | None:
        """Tokens of the conversation so far; None where the model cannot count."""
        return self.model.count(self.conversation) if self.model.count and self.turns else None

    # --- answers --------------------------------------------------------------------------------------------------

    def ask(self, text: str) -> Answer:
        """Send ``text`` with the pending pictures; yields the answer in pieces and returns it as a whole."""
        pictures = self.pending
        message = user(*(attachment.image for attachment in pictures), text)
        self.pending = []
        self.turns.append(message)
        self.attachments.update((attachment.image, attachment) for attachment in pictures)
        try:
            return (yield from self._answer())
        except Exception:
            if self.turns and self.turns[-1] is message:
                self.turns.pop()
                self.pending = pictures + self.pending
            raise

    def regenerate(self) -> Answer:
        """Draw the last answer again, with the next seed. Raises ConfigError when there is none."""
        if not self.turns or self.turns[-1].role != "assistant":
            raise ConfigError("there is no answer to draw again")
        old = self.turns.pop()
        self.generation = replace(self.generation, seed=self.generation.seed + 1)
        try:
            return (yield from self._answer())
        except Exception:
            self.turns.append(old)
            raise

    def abort(self) -> None:
        """Stop the running answer at the next token; what was said so far stays. Harmless when none is running."""
        self._stop.set()
        self.model.engine.abort(self._request)

    @property
    def busy(self) -> bool:
        """Whether an answer is being drawn."""
        return self._running.locked()

    @property
    def _request(self) -> str:
        return f"chat-{id(self)}-{self._requests}"

    def _answer(self) -> Answer:
        if not self._running.acquire(blocking=False):
            raise ConfigError("an answer is still being drawn")
        try:
            self._stop.clear()
            self._requests += 1
            return (yield from self._stream(self.conversation, self._fitting(self.conversation)))
        finally:
            self._running.release()

    def _fitting(self, prompt: Conversation) -> Generation:
        """The settings, with no more new tokens than the context leaves. Raises DataError when it leaves none."""
        if self.model.count is None or self.model.context is None:
            return self.generation
        used = self.model.count(prompt)
        room = self.model.context - used
        if room < 1:
            raise DataError(
                f"the conversation has {used} tokens and the model takes {self.model.context}",
                hint="Start a new one (/new), or ask a shorter question.",
            )
        return replace(self.generation, max_new_tokens=min(self.generation.max_new_tokens, room))

    def _stream(self, prompt: Conversation, generation: Generation) -> Answer:
        started = time.monotonic()
        first: float | None = None
        pieces: list[str] = []
        completion: Completion | None = None
        stopped = False
        stream = self.model.engine.stream(prompt, generation, request_id=self._request)
        try:
            while True:
                stopped = self._stop.is_set()
                try:
                    raw = next(stream)  # once more when stopped: an engine that aborts then returns its completion
                except StopIteration as end:
                    completion = end.value
                    break
                if stopped:
                    break
                if first is None:
                    first = time.monotonic() - started
                piece = clean(raw)
                pieces.append(piece)
                yield piece
        except GeneratorExit:  # the reader went away: the turn ends with what it has read
            self._finish("".join(pieces), None, started, first, stopped=True)
            raise
        finally:
            stream.close()
        return self._finish("".join(pieces), completion, started, first, stopped=stopped)

    def _finish(
        self, text: str, completion: Completion | None, started: float, first: float | None, *, stopped: bool
    ) -> Reply:
        reason = completion.finish_reason if completion else ("abort" if stopped else None)
        tokens = len(completion.ids) if completion else None
        self.last = Reply(text, tokens, time.monotonic() - started, first, reason)
        self.turns.append(assistant(text))
        return self.last


def changed(generation: Generation, key: str, value: str) -> Generation:
    """``generation`` with one field read from text. Raises ConfigError for an unknown key or an impossible value."""
    limits: dict[str, tuple[type, Callable[[Any], bool], str]] = {
        "max_new_tokens": (int, lambda v: v >= 1, "a whole number of at least 1"),
        "temperature": (float, lambda v: 0 <= v <= 10, "a number from 0 to 10"),
        "top_k": (int, lambda v: v >= 0, "a whole number of at least 0 (0 keeps every token)"),
        "top_p": (float, lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
        "seed": (int, lambda v: 0 <= v < 2**63, "a whole number of at least 0"),
    }
    key = key.strip().replace("-", "_")
    if key not in limits:
        raise ConfigError(f"unknown setting '{key}'.{did_you_mean(key, limits)}", hint=f"Known: {', '.join(limits)}.")
    kind, possible, expected = limits[key]
    try:
        number = kind(value)
    except ValueError:
        number = None
    if number is None or not possible(number):
        raise ConfigError(f"{key} = {value.strip()}: expected {expected}")
    return replace(generation, **{key: number})
