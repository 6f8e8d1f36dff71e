"""Which samples can be learnt from, and what counts as one that cannot: the same for training and for shards."""

from __future__ import annotations

from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import Conversation, Sample, Text, ToolCall

UNUSABLE = (DataError, OSError, UnicodeError)
"""What reading a sample may raise for the sample to be a bad one; anything else is a defect and ends the run."""


def reason_of(error: BaseException) -> str:
    """Why a sample is a bad one, for the ledger."""
    return error.message if isinstance(error, DataError) else f"{type(error).__name__}: {error}"


def check_learnable(sample: Sample) -> None:
    """Raises DataError for an empty text, a conversation without an answer, or one with an empty answer."""
    if not isinstance(sample, Conversation):
        if not sample.text.strip():
            raise DataError("the text is empty")
        return
    answers = [message for message in sample.messages if message.role == "assistant"]
    if not answers:
        raise DataError("nothing to learn from: no assistant message")
    for answer in answers:
        if not any(
            isinstance(part, ToolCall) or (isinstance(part, Text) and part.text.strip()) for part in answer.parts
        ):
            raise DataError("empty answer")
