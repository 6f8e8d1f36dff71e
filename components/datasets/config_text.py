"""The options of the published text sets, and of tables of one's own. Imports neither torch nor pyarrow."""

from __future__ import annotations

import fnmatch
from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from components.datasets.config import Choices, PublishedOptions
from components.datasets.config_local import Local

CLIMBMIX_HELD_OUT = "06542"  # the last of the 6,543 shards, which nanochat validates on


class FineWebEdu(PublishedOptions):
    """FineWeb-Edu: web pages that a classifier finds educational."""

    subset: str = Field(
        default="sample/10BT",
        pattern=r"^(sample/(10|100|350)BT|data/CC-MAIN-\d{4}-\d\d)$",
        description="Which part: sample/10BT, sample/100BT, sample/350BT (tokens), or one crawl: data/CC-MAIN-2024-10.",
    )


class ClimbMix(PublishedOptions):
    """ClimbMix: a mixture of web text that was searched for, in shuffled shards."""

    shards: str = Field(
        default="000??",
        pattern=r"^[0-9?*\[\]-]+$",
        description="Which shards, as a shell pattern of their number: 000?? are 100 of 6,542, of 90 MB each.",
    )

    @field_validator("shards")
    @classmethod
    def _not_held_out(cls, pattern: str) -> str:
        if fnmatch.fnmatchcase(CLIMBMIX_HELD_OUT, pattern):
            raise ValueError(f"shard {CLIMBMIX_HELD_OUT} is the validation split; {pattern} contains it")
        return pattern


class SmolTalk(PublishedOptions):
    """SmolTalk: conversations that larger models wrote."""

    subset: str = Field(
        default="all",
        pattern=r"^[a-z0-9-]+$",
        description="Which part: all, or one of its sources, such as everyday-conversations or smol-magpie-ultra.",
    )


class OpenThoughts(PublishedOptions):
    """OpenThoughts: questions on mathematics, code and science, and answers with the thoughts before them."""


class GSM8K(PublishedOptions):
    """GSM8K: word problems of grade-school mathematics, solved in steps."""

    subset: Literal["main", "socratic"] = Field(
        default="main", description="main, or socratic: each step is preceded by a question."
    )
    annotations: Literal["text", "keep"] = Field(
        default="text",
        description='What becomes of the calculator annotations "48/2=<<48/2=24>>24": plain text without them, or '
        "kept as published.",
    )


class MATH(PublishedOptions):
    """MATH (Hendrycks et al. 2021): problems of mathematics competitions, with solutions."""

    subset: str = Field(
        default="*",
        pattern=r"^(\*|[a-z_]+)$",
        description="All subjects (*), or one: algebra, counting_and_probability, geometry, intermediate_algebra, "
        "number_theory, prealgebra, precalculus.",
    )


class _Choices(PublishedOptions):
    suffix: str = Field(
        default=Choices.model_fields["suffix"].default, description=Choices.model_fields["suffix"].description
    )


class MMLUAux(_Choices):
    """The auxiliary training set of MMLU: multiple-choice questions out of other tests."""


class ARC(_Choices):
    """AI2's ARC: questions of grade-school science with choices."""

    subset: Literal["ARC-*", "ARC-Easy", "ARC-Challenge"] = Field(
        default="ARC-*", description="Both parts, or one of them."
    )


class Parquet(Local):
    """Tables of one's own: a column of text, of conversations, or of answers with questions and pictures."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"path": "table.parquet", "text": "text"}]}
    )

    path: str = Field(min_length=1, description="A .parquet, .arrow or .jsonl file, or a folder of them.")
    text: str | None = Field(default=None, min_length=1, description="Column with documents for pretraining.")
    messages: str | None = Field(
        default=None, min_length=1, description="Column with whole conversations: role and content, or from and value."
    )
    answer: str | None = Field(default=None, min_length=1, description="Column with answers.")
    question: str | None = Field(default=None, min_length=1, description="Column with the questions to them.")
    request: str | None = Field(
        default=None, min_length=1, description="What is asked for each answer where no column says it."
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        description="Column with a picture of each row, shown first: embedded, encoded bytes, or the path of a file.",
    )
    root: str | None = Field(default=None, description="Folder of the pictures; the table's own when not given.")

    @model_validator(mode="after")
    def _one_kind(self) -> Parquet:
        said = [name for name in ("text", "messages", "answer") if getattr(self, name)]
        if len(said) != 1:
            raise ValueError("name one column: text (documents), messages (conversations) or answer")
        if self.answer and (self.question is None) == (self.request is None):
            raise ValueError("beside answer, give either question (a column) or request (the same for all)")
        alone = [name for name in ("question", "request", "image") if getattr(self, name) and not self.answer]
        if alone and not (alone == ["image"] and self.messages):
            raise ValueError(f"{alone[0]} belongs to answer, and {said[0]} is given")
        return self
