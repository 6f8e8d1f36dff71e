"""The options of the built-in data sets. Imports neither torch nor Pillow."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Form = Literal["documents", "conversations"]
SceneKind = Literal["counting", "position", "colour", "presence"]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EasyVQA(_Options):
    """Questions about one coloured shape, with the published split."""

    questions_per_sample: int = Field(
        1, ge=1, le=32, description="Questions about the same picture that make one conversation."
    )


class OpenMoji(_Options):
    """Pictures and their names."""

    render_size: int = Field(128, ge=16, le=1024, description="Side of the rendered pictures, in pixels.")
    views: int = Field(
        1,
        ge=1,
        le=10_000,
        description="Views of each training picture: the plain one and augmented ones. Other splits are plain.",
    )


class Scenes(_Options):
    """Composed pictures with known answers."""

    size: int = Field(4000, ge=1, description="Scenes per split.")
    questions: tuple[SceneKind, ...] = Field(
        ("counting", "position", "colour", "presence"), min_length=1, description="Kinds of questions, in equal shares."
    )
    canvas: int = Field(128, ge=96, le=512, description="Side of a scene, in pixels.")


class Chitchat(_Options):
    """Human dialogues."""

    form: Form = Field("conversations", description="Plain text for pretraining, or turns with roles.")
    max_turns: int = Field(16, ge=2, description="Longer dialogues are cut into windows of at most this many messages.")


class Chatterbot(_Options):
    """Short questions and answers in English."""

    form: Form = Field("conversations", description="Plain text for pretraining, or turns with roles.")


class DebianOptions(_Options):
    """Captioned pictures from a Debian package: where its files are, and how often a picture is seen."""

    root: str | None = Field(
        default=None,
        description="Folder with the files as the package installs them; else they are found or fetched.",
    )
    debs: tuple[str, ...] = Field(default=(), description="The package's .deb files, if they are here already.")
    views: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="Views of each training picture: the plain one and augmented ones. Other splits are plain.",
    )


class TuxPaint(DebianOptions):
    """Stamps of the drawing program Tux Paint, each with a sentence."""

    render_size: int = Field(default=256, ge=32, le=1024, description="Longer side of the vector drawings, in pixels.")


class OpenClipart(DebianOptions):
    """Drawings of the Open Clip Art Library with their titles."""


class GimpHelp(DebianOptions):
    """Figures of the GIMP manual with their captions."""


class PublishedOptions(_Options):
    """A data set that others publish: where its files are."""

    path: str | None = Field(
        default=None, description="Folder with the publisher's files, or the file; else the Hugging Face hub."
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub.")


class PictureFolderOptions(PublishedOptions):
    """A published set whose pictures may be files."""

    images: str | None = Field(
        default=None, description="Folder of the pictures, where they are files of their own; else that of path."
    )


class CaptionOptions(PictureFolderOptions):
    """Captions: what is asked for them."""

    request: str | None = Field(default=None, description="What the user says; else one of several short requests.")


class CocoCaptions(CaptionOptions):
    """COCO pictures, each with five captions."""

    year: Literal[2014, 2017] = Field(
        default=2017, description="Which of COCO's own annotation files; Karpathy's split has its own."
    )


class Laion(CaptionOptions):
    """Pictures of the web with their alternative texts."""

    address_column: str = Field(default="URL", description="Of a table that img2dataset did not write: the addresses.")
    caption_column: str = Field(default="TEXT", description="Of such a table: the texts.")


class Pixmo(CaptionOptions):
    """Long captions that people spoke."""


class LlavaInstruct(PictureFolderOptions):
    """Conversations about pictures, in one of LLaVA's files."""

    file: str = Field(
        default="llava_instruct_150k.json",
        description="Which file, such as llava_v1_5_mix665k.json or detail_23k.json.",
    )


class ShareGPT4V(PictureFolderOptions):
    """Long captions of pictures by a model."""

    file: str = Field(
        default="sharegpt4v_instruct_gpt4-vision_cap100k.json",
        description="Which file, such as share-captioner_coco_lcs_sam_1246k_1107.json.",
    )


class TheCauldron(PublishedOptions):
    """Fifty sets in one form."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"subset": ["ai2d"]}]})
    subset: tuple[str, ...] = Field(min_length=1, description='Names of the sets, such as ["ai2d", "vqav2"].')


class ShortAnswers(PictureFolderOptions):
    """Questions with a short answer."""

    suffix: str = Field(
        default="\nAnswer the question using a single word or phrase.",
        description='Follows each question, in training and evaluation alike; "" for none.',
    )


class ChartQA(ShortAnswers):
    """Questions about charts."""

    suffix: str = Field(
        default="\nAnswer the question with a single word.",
        description='Follows each question, in training and evaluation alike; "" for none.',
    )


class Choices(PictureFolderOptions):
    """Questions with a choice of answers, each behind a letter."""

    suffix: str = Field(
        default="\nAnswer with the option's letter from the given choices directly.",
        description='Follows the choices, in training and evaluation alike; "" for none.',
    )


class AOKVQA(PictureFolderOptions):
    """Questions that need knowledge of the world."""

    form: Literal["short", "choices"] = Field(
        default="short", description="Answered freely in a word or two, or with the letter of a choice."
    )
    suffix: str | None = Field(
        default=None, description='Follows each question; else the one that is usual for the form; "" for none.'
    )
