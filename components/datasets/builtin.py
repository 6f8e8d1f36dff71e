"""The built-in data sets: declarations that :mod:`components.builtin` passes on. Imports nothing but the contract."""

from __future__ import annotations

from collections.abc import Iterator

from ghostvis_plugins import ComponentSpec, dataset

_OPENMOJI = "CC-BY-SA-4.0"


def datasets() -> Iterator[ComponentSpec]:
    """All of them: those that come in packages, those that others publish, and the user's own files."""
    yield from _packaged()
    yield from _with_pictures()
    yield from _texts()
    yield from _own()


def _packaged() -> Iterator[ComponentSpec]:
    yield dataset(
        "easy_vqa",
        config="components.datasets.config:EasyVQA",
        build="components.datasets.easy_vqa:build",
        summary="easy-VQA: questions about one coloured shape",
        license="MIT",
    )
    yield dataset(
        "openmoji",
        config="components.datasets.config:OpenMoji",
        build="components.datasets.openmoji:build",
        summary="OpenMoji pictures and their names",
        license=_OPENMOJI,
    )
    yield dataset(
        "tuxpaint",
        config="components.datasets.config:TuxPaint",
        build="components.datasets.tuxpaint:build",
        summary="Tux Paint stamps: pictures with a sentence by a person",
        license="GPL-2.0-or-later",
    )
    yield dataset(
        "openclipart",
        config="components.datasets.config:OpenClipart",
        build="components.datasets.openclipart:build",
        summary="Open Clip Art drawings with their titles",
        license="public domain",
    )
    yield dataset(
        "gimp_help",
        config="components.datasets.config:GimpHelp",
        build="components.datasets.gimp_help:build",
        summary="figures of the GIMP manual with their captions",
        license="GFDL-1.2-or-later",
    )
    yield dataset(
        "scenes",
        config="components.datasets.config:Scenes",
        build="components.datasets.scenes:build",
        summary="composed pictures: counting, position, colour, presence",
        license=_OPENMOJI,
    )
    yield dataset(
        "chitchat",
        config="components.datasets.config:Chitchat",
        build="components.datasets.chitchat:build",
        summary="BYU Chit-Chat: dialogues between people",
        license="MIT",
    )
    yield dataset(
        "chatterbot",
        config="components.datasets.config:Chatterbot",
        build="components.datasets.chatterbot:build",
        summary="ChatterBot corpus: English questions and answers",
        license="BSD-3-Clause",
    )


def _with_pictures() -> Iterator[ComponentSpec]:
    yield dataset(
        "coco_captions",
        config="components.datasets.config:CocoCaptions",
        build="components.datasets.published_captions:COCO_CAPTIONS",
        summary="COCO: pictures with five captions each",
        license="CC-BY-4.0; pictures: terms of Flickr",
    )
    yield dataset(
        "laion",
        config="components.datasets.config:Laion",
        build="components.datasets.published_captions:LAION",
        summary="pictures of the web with their alternative texts",
        license="CC-BY-4.0; pictures: their owners'",
    )
    yield dataset(
        "pixmo",
        config="components.datasets.config:Pixmo",
        build="components.datasets.published_captions:PIXMO",
        summary="PixMo-Cap: long captions that people spoke",
        license="ODC-BY-1.0; pictures: their owners'",
    )
    yield dataset(
        "llava_instruct",
        config="components.datasets.config:LlavaInstruct",
        build="components.datasets.published_instructions:LLAVA_INSTRUCT",
        summary="LLaVA: conversations about pictures, 150k or the mix of 665k",
        license="CC-BY-4.0, OpenAI terms",
    )
    yield dataset(
        "sharegpt4v",
        config="components.datasets.config:ShareGPT4V",
        build="components.datasets.published_instructions:SHAREGPT4V",
        summary="ShareGPT4V: long captions by a model",
        license="CC-BY-NC-4.0, OpenAI terms",
    )
    yield dataset(
        "the_cauldron",
        config="components.datasets.config:TheCauldron",
        build="components.datasets.published_instructions:THE_CAULDRON",
        summary="The Cauldron: fifty sets in one form",
        license="prompts CC-BY-4.0; each set its own",
    )
    yield dataset(
        "vqav2",
        config="components.datasets.config:ShortAnswers",
        build="components.datasets.published_questions:VQAV2",
        summary="VQAv2: questions about COCO pictures, ten answers each",
        license="CC-BY-4.0",
    )
    yield dataset(
        "okvqa",
        config="components.datasets.config:ShortAnswers",
        build="components.datasets.published_questions:OKVQA",
        summary="OK-VQA: questions that need outside knowledge",
        license="none stated",
    )
    yield dataset(
        "aokvqa",
        config="components.datasets.config:AOKVQA",
        build="components.datasets.published_questions:AOKVQA",
        summary="A-OKVQA: knowledge of the world, freely or by choice",
        license="none stated",
    )
    yield dataset(
        "gqa",
        config="components.datasets.config:ShortAnswers",
        build="components.datasets.published_questions:GQA",
        summary="GQA: compositional questions, balanced",
        license="none stated; pictures: CC-BY-4.0",
    )
    yield dataset(
        "textvqa",
        config="components.datasets.config:ShortAnswers",
        build="components.datasets.published_questions:TEXTVQA",
        summary="TextVQA: text in photographs",
        license="CC-BY-4.0",
    )
    yield dataset(
        "stvqa",
        config="components.datasets.config:ShortAnswers",
        build="components.datasets.published_questions:STVQA",
        summary="ST-VQA: text in scenes",
        license="none stated",
    )
    yield dataset(
        "docvqa",
        config="components.datasets.config:ShortAnswers",
        build="components.datasets.published_questions:DOCVQA",
        summary="DocVQA: scanned documents",
        license="none stated",
    )
    yield dataset(
        "chartqa",
        config="components.datasets.config:ChartQA",
        build="components.datasets.published_questions:CHARTQA",
        summary="ChartQA: charts, by people and augmented",
        license="GPL-3.0",
    )
    yield dataset(
        "ai2d",
        config="components.datasets.config:Choices",
        build="components.datasets.published_choices:AI2D",
        summary="AI2D: diagrams of school books, by choice",
        license="non-commercial research",
    )
    yield dataset(
        "scienceqa",
        config="components.datasets.config:Choices",
        build="components.datasets.published_choices:SCIENCEQA",
        summary="ScienceQA: school science, with and without pictures",
        license="CC-BY-NC-SA-4.0",
    )


def _texts() -> Iterator[ComponentSpec]:
    yield dataset(
        "fineweb_edu",
        config="components.datasets.config_text:FineWebEdu",
        build="components.datasets.corpora:FINEWEB_EDU",
        summary="FineWeb-Edu: educational web pages, for pretraining",
        license="ODC-By-1.0",
    )
    yield dataset(
        "climbmix",
        config="components.datasets.config_text:ClimbMix",
        build="components.datasets.corpora:CLIMBMIX",
        summary="ClimbMix: a mixture of web text, for pretraining",
        license="CC-BY-NC-4.0",
    )
    yield dataset(
        "smoltalk",
        config="components.datasets.config_text:SmolTalk",
        build="components.datasets.chats:SMOLTALK",
        summary="SmolTalk: conversations written by models",
        license="Apache-2.0; older sources their own",
    )
    yield dataset(
        "openthoughts",
        config="components.datasets.config_text:OpenThoughts",
        build="components.datasets.chats:OPENTHOUGHTS",
        summary="OpenThoughts: answers with the thoughts before them",
        license="Apache-2.0",
    )
    yield dataset(
        "gsm8k",
        config="components.datasets.config_text:GSM8K",
        build="components.datasets.problems:GSM8K",
        summary="GSM8K: word problems of grade-school mathematics",
        license="MIT",
    )
    yield dataset(
        "math",
        config="components.datasets.config_text:MATH",
        build="components.datasets.problems:MATH",
        summary="MATH: problems of mathematics competitions",
        license="MIT",
    )
    yield dataset(
        "mmlu_aux",
        config="components.datasets.config_text:MMLUAux",
        build="components.datasets.problems:MMLU_AUX",
        summary="the auxiliary training set of MMLU: multiple choice",
        license="MIT; its sources their own",
    )
    yield dataset(
        "arc",
        config="components.datasets.config_text:ARC",
        build="components.datasets.problems:ARC",
        summary="ARC: science questions of grade school, multiple choice",
        license="CC-BY-SA-4.0",
    )


def _own() -> Iterator[ComponentSpec]:
    yield dataset(
        "jsonl",
        config="components.datasets.config_local:Jsonl",
        build="components.datasets.jsonl:build",
        summary="your own conversations or documents, one JSON object a line",
    )
    yield dataset(
        "parquet",
        config="components.datasets.config_text:Parquet",
        build="components.datasets.parquet:build",
        summary="your own tables, by the names of their columns",
    )
    yield dataset(
        "imagefolder",
        config="components.datasets.config_local:ImageFolder",
        build="components.datasets.imagefolder:build",
        summary="your own folder of pictures, by class or with metadata.csv",
    )
    yield dataset(
        "identity",
        config="components.datasets.config_local:Identity",
        build="components.datasets.identity:build",
        summary="who am I: conversations about the model, from a file to edit",
        license="Apache-2.0",
    )
    yield dataset(
        "webdataset",
        config="components.datasets.config_shards:WebDataset",
        build="components.datasets.webdataset:build",
        summary="tar shards: prepared ones, or anybody's captioned pictures",
    )
