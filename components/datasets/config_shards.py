"""The options of the data set that reads tar shards. Imports neither torch nor Pillow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class WebDataset(BaseModel):
    """Tar shards: what ``ghostvis data prepare`` wrote, or anybody's WebDataset of pictures with captions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: tuple[str, ...] = Field(
        min_length=1,
        description="Folder that `ghostvis data prepare` wrote, or tars of somebody else: a folder of them, or files, "
        "with braces as in data-{000..009}.tar; one or several. A URL can only be prepared from.",
    )
    caption: str | None = Field(
        default=None,
        min_length=1,
        description="In tars of somebody else, where a sample's caption is: an ending, such as txt, or a key of its "
        "JSON. Else txt, caption or text, whichever comes first.",
    )
    validation: float = Field(
        default=0.02, ge=0, lt=0.5, description="Share set aside for validation where no folder of that name is there."
    )
    test: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share set aside for testing where no folder of that name is there."
    )

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value
