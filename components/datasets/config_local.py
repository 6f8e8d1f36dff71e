"""The options of the data sets that read the user's own files. Imports neither torch nor Pillow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

PATH = "File, folder, or a list of them, relative to where ghostvis is started."
VALIDATION = "Share that is set aside for validation where the files name no such split."
TEST = "Share that is set aside for testing where the files name no such split."


class Local(BaseModel):
    """Files that no one else knows: how much of them is held out."""

    validation: float = Field(default=0.02, ge=0, lt=0.5, description=VALIDATION)
    test: float = Field(default=0.0, ge=0, lt=0.5, description=TEST)


class Jsonl(Local):
    """Conversations or documents of the user, one JSON object a line."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"path": "chats.jsonl"}]})

    path: tuple[str, ...] = Field(min_length=1, description=f"{PATH} A folder stands for its .jsonl files.")
    root: str | None = Field(default=None, description="Folder of the pictures; the file's own when not given.")

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class ImageFolder(Local):
    """A folder of pictures: one subfolder a class, or a metadata file that says what is in them."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"path": "pictures"}]})

    path: str = Field(min_length=1, description="The folder.")
    answer: str = Field(default="text", min_length=1, description="Column of the metadata that is the answer.")
    question: str | None = Field(
        default=None, min_length=1, description="Column of the metadata that is the question; else request is asked."
    )
    request: str | None = Field(
        default=None,
        min_length=1,
        description='What is asked about every picture; "What is this?" about a class, else one of several requests '
        "for a caption when not given.",
    )


class Identity(BaseModel):
    """Who the model is: short conversations out of a file that is made to be edited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        default=None,
        min_length=1,
        description="Your own file: topics as TOML or YAML, or whole conversations as .jsonl. Else the packaged one.",
    )
    assistant: str | None = Field(
        default=None, min_length=1, description="Name of the model, in place of the one in the file."
    )
