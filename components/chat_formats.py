"""How a conversation is spelt for a language model: a chat template as token segments. Torch-free.

A chat template in Jinja writes one string, in which control tokens and what people typed look alike. A
:class:`ChatFormat` says the same as segments: :class:`Control` tokens by name, and plain text. Text goes through a
tokenizer that cannot produce a control token, so nobody can end a turn by typing its end, and what is learnt is
known token by token (:mod:`components.rendering`).

Each format equals one call of ``tokenizer.apply_chat_template(messages, ...)`` on clean text, i.e. text that spells
no control token, in answers that do not begin with white space (the boundary before an answer is one of tokens, too):

- ``chatml``: ours; the template saved beside every tokenizer (:mod:`components.tokenizers`). No system prompt of its
  own. Also stands for foreign ChatML templates, whose default system prompt it takes over.
- ``qwen2.5`` and ``smollm2``: the templates' defaults. SmolLM2's own has no tool calls; they are written as Qwen's.
- ``qwen3``: ``enable_thinking=False``. An empty thought opens the sampled turn (``add_generation_prompt=True``) and,
  in a whole conversation, the last turn where it is the assistant's answer to a user; earlier turns have none.
  ``reasoning_content`` does not exist here, and a thought inside of an answer is text of that answer.
- ``qwen3-instruct``: Qwen3 without thoughts (the 2507 releases).
- ``llama3``: Llama 3.1 to 3.3 with ``date_string="26 Jul 2024"``, the date that their templates fall back on (3.1
  and 3.3 always; 3.2 where it cannot ask for today's, which transformers tells it). No ``tools``.

Where a vocabulary lacks the tokens of tool calls and thoughts, they are plain text, as in the template.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ghostvis_plugins.errors import DataError, did_you_mean

ROLES = ("system", "user", "assistant", "tool")
CONFIG_KEY = "ghostvis_chat_format"  # in tokenizer_config.json

END_OF_TEXT, IM_START, IM_END, IMAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image|>"
TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TOOL_RESPONSE, TOOL_RESPONSE_END = "<tool_response>", "</tool_response>"
THINK, THINK_END = "<think>", "</think>"
BEGIN_OF_TEXT, LLAMA_END_OF_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
START_HEADER, END_HEADER, END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
IMAGE_TOKENS = (IMAGE, "<|image_pad|>", "<image>")  # what stands for a picture, the first that a vocabulary has


@dataclass(frozen=True, slots=True)
class Control:
    """A control token by name. An ``optional`` one is plain text where the vocabulary lacks it."""

    token: str
    optional: bool = False


Segment: TypeAlias = Control | str
Segments: TypeAlias = tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """One chat template. A turn is ``header``, its parts, the control token ``end`` and the text ``after_end``."""

    name: str
    begin: Segments = ()  # before the first turn
    turn: Segments = (Control(IM_START), "{role}\n")  # {role} is replaced
    end: str = IM_END
    after_end: str = "\n"
    document: tuple[str, str] = (END_OF_TEXT, END_OF_TEXT)  # around a document; where they are missing, ``end``
    stops: tuple[str, ...] = ()  # further tokens that end an answer, where the vocabulary has them
    default_system: str | None = None  # the system turn of a conversation that does not begin with one
    preamble: str = ""  # what the first system turn begins with, in any case
    trims: bool = False  # whether white space around a message is dropped
    thought: Segments = ()  # written for the assistant at the start of its last turn; never learnt
    call_start: Segments = (Control(TOOL_CALL, True), "\n")
    call_end: Segments = ("\n", Control(TOOL_CALL_END, True))
    call_key: str = "arguments"
    call_gap: str = ""  # between a text and a call, and between two calls
    calls_stand_alone: bool = False  # a turn is either text or one call
    result_start: Segments = (Control(TOOL_RESPONSE, True), "\n")
    result_end: Segments = ("\n", Control(TOOL_RESPONSE_END, True))
    result_role: str = "tool"
    results_share_turn: bool = False  # neighbouring results are parts of one turn, a line each
    results_are_json: bool = False
    arguments: tuple[tuple[str, str | bool], ...] = ()  # of the template, for which it says the same

    def header(self, role: str) -> Segments:
        """What opens a turn of ``role``."""
        spelt = self.result_role if role == "tool" else role
        return tuple(s.replace("{role}", spelt) if isinstance(s, str) else s for s in self.turn)

    def required(self) -> tuple[str, ...]:
        """The control tokens that a vocabulary must have."""
        needed = [s.token for s in (*self.begin, *self.turn) if isinstance(s, Control) and not s.optional]
        return (*needed, self.end)

    def saved(self) -> str | dict[str, str | None]:
        """The value of ``ghostvis_chat_format`` in ``tokenizer_config.json``, which :func:`from_saved` reads."""
        if CHAT_FORMATS.get(self.name) == self:
            return self.name
        return {"name": self.name, "default_system": self.default_system}


CHATML = ChatFormat(name="chatml")
_QWEN = ChatFormat(name="", call_gap="\n", result_role="user", results_share_turn=True)
QWEN25 = replace(
    _QWEN, name="qwen2.5", default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
)
SMOLLM2 = replace(
    _QWEN,
    name="smollm2",
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    result_role="tool",
    results_share_turn=False,
)
QWEN3_INSTRUCT = replace(_QWEN, name="qwen3-instruct")
QWEN3 = replace(
    _QWEN,
    name="qwen3",
    thought=(Control(THINK, True), "\n\n", Control(THINK_END, True), "\n\n"),
    arguments=(("enable_thinking", False),),
)
LLAMA3 = ChatFormat(
    name="llama3",
    begin=(Control(BEGIN_OF_TEXT),),
    turn=(Control(START_HEADER), "{role}", Control(END_HEADER), "\n\n"),
    end=END_OF_TURN,
    after_end="",
    document=(BEGIN_OF_TEXT, LLAMA_END_OF_TEXT),
    stops=("<|eom_id|>",),
    default_system="",
    preamble="Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
    trims=True,
    call_start=(),
    call_end=(),
    call_key="parameters",
    calls_stand_alone=True,
    result_start=(),
    result_end=(),
    result_role="ipython",
    results_are_json=True,
    arguments=(("date_string", "26 Jul 2024"),),
)
CHAT_FORMATS: dict[str, ChatFormat] = {f.name: f for f in (CHATML, QWEN25, SMOLLM2, QWEN3, QWEN3_INSTRUCT, LLAMA3)}


def from_saved(value: Any, where: str) -> ChatFormat:
    """The format that ``ghostvis_chat_format`` names. Raises DataError, saying ``where``, for one that is unknown."""
    known = f"Known: {', '.join(CHAT_FORMATS)}."
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or not set(table) <= {"name", "default_system"}:
        raise DataError(f"{where}: {CONFIG_KEY} = {value!r} is not a chat format", hint=known)
    name, prompt = table.get("name"), table.get("default_system")
    if not isinstance(name, str) or name not in CHAT_FORMATS:
        raise DataError(f"{where}: unknown {CONFIG_KEY} {name!r}.{did_you_mean(str(name), CHAT_FORMATS)}", hint=known)
    if prompt is not None and not isinstance(prompt, str):
        raise DataError(f"{where}: {CONFIG_KEY}.default_system is not text")
    return replace(CHAT_FORMATS[name], default_system=prompt) if "default_system" in table else CHAT_FORMATS[name]


def detect(config: Mapping[str, Any], template: str, tokens: Collection[str], where: str) -> ChatFormat:
    """The format of a tokenizer: what ``config`` (``tokenizer_config.json``) names, else what ``template`` (its chat
    template, empty for none) says, else what the control ``tokens`` of its vocabulary allow.

    A template is told by words that only it has, which is a guess (:mod:`components.chat_templates` settles it); of
    other ChatML templates the default system prompt is taken over.
    Raises DataError, saying ``where``, for a template or a vocabulary of none of the formats.
    """
    if CONFIG_KEY in config:
        return from_saved(config[CONFIG_KEY], where)
    hint = (
        f'Known formats: {", ".join(CHAT_FORMATS)}. If one of them fits, write "{CONFIG_KEY}": "NAME" into '
        "tokenizer_config.json."
    )
    if not template:
        return _from_tokens(tokens, where, hint)
    if START_HEADER in template:
        if "Cutting Knowledge Date" not in template:
            raise DataError(f"{where}: the chat template of Llama 3.0, or a derived one, is not supported", hint=hint)
        return LLAMA3
    if IM_START not in template:
        raise DataError(f"{where}: the chat template is of no known format", hint=hint)
    if "enable_thinking" in template and THINK in template:
        return QWEN3
    if THINK in template and "reasoning_content" not in template:
        raise DataError(f"{where}: the chat template always thinks first, which is not supported", hint=hint)
    prompt = _default_system(template, where)
    for known in (QWEN25, SMOLLM2):
        if known.default_system == prompt:
            return known
    if "<|im_start|>user' }}" in template and TOOL_RESPONSE in template:  # tool results as turns of the user: Qwen's
        return replace(QWEN25, default_system=prompt) if prompt is not None else QWEN3_INSTRUCT
    return CHATML if prompt is None else replace(CHATML, default_system=prompt)


def _from_tokens(tokens: Collection[str], where: str, hint: str) -> ChatFormat:
    """Without a template: the most that the control tokens allow."""
    if {START_HEADER, END_HEADER, END_OF_TURN} <= set(tokens):
        return LLAMA3
    if {IM_START, IM_END} <= set(tokens):
        return QWEN3 if THINK in tokens else CHATML
    raise DataError(
        f"{where}: the tokenizer has no chat template and no tokens for one (such as {IM_START} and {IM_END})",
        hint=f"Choose an instruction-tuned checkpoint. {hint}",
    )


def _default_system(template: str, where: str) -> str | None:
    """The system prompt that a ChatML template writes by itself: the literal text of a system turn."""
    # In the template's source a line break of a literal is an escape or, in files that were unescaped once, itself.
    # Nothing behind the last end can match; searched all the same, each start there would cost a look at all the rest.
    template = template[: template.rfind(IM_END) + len(IM_END)]
    found = re.search(r"<\|im_start\|>system(?:\\n|\n)(?!['\"])(.+?)<\|im_end\|>", template, re.DOTALL)
    if found is None:
        return None
    if "{" in found[1] or "' +" in found[1] or "' ~" in found[1]:
        raise DataError(f"{where}: the chat template computes its system prompt, which is not supported")
    return re.sub(r"\\(n|'|\")", lambda escape: "\n" if escape[1] == "n" else escape[1], found[1])
