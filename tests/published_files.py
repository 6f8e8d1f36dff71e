"""Tiny copies of published data sets, in the exact layout, column names and types of their publishers.

Sources of the schemas: the data-set cards and file listings of the repositories on the Hugging Face hub, the download
pages of the sets, and COCO's and VQA's descriptions of their formats. Every writer fills a folder and returns the
options that point a data set to it. Pictures are real PNG and JPEG files.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 240  # of a training split: enough for the 1 % that is set aside to hold something
FEW = 6  # of any other

S, I32, I64, I8, F32, F64, B = (
    pa.string(), pa.int32(), pa.int64(), pa.int8(), pa.float32(), pa.float64(), pa.bool_(),
)  # fmt: skip
IMAGE = pa.struct([("bytes", pa.binary()), ("path", S)])


def struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct(list(fields.items()))


def picture(number: int, kind: str = "PNG") -> bytes:
    """A real encoded picture, another one for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def embedded(number: int) -> dict[str, Any]:
    return {"bytes": picture(number), "path": f"{number}.png"}


def put(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number, "PNG" if path.suffix == ".png" else "JPEG"))


def parquet(path: Path, columns: dict[str, pa.DataType], rows: Iterable[dict[str, Any]], group: int = 50) -> Path:
    """One parquet file as ``datasets`` pushes it: small row groups, nullable columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=pa.schema(list(columns.items())))
    pq.write_table(table, path, row_group_size=group)
    return path


def shards(folder: Path, stem: str, columns: dict[str, pa.DataType], rows: Sequence[dict[str, Any]], count: int = 2):
    """Several files ``STEM-00000-of-00002.parquet``."""
    for number in range(count):
        part = rows[number * len(rows) // count : (number + 1) * len(rows) // count]
        parquet(folder / f"{stem}-{number:05d}-of-{count:05d}.parquet", columns, part)


def dump(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


Writer = Callable[[Path], dict[str, Any]]
WRITERS: dict[str, tuple[str, Writer]] = {}
"""Every layout: its name → (data set, writer)."""


def layout(name: str, dataset: str) -> Callable[[Writer], Writer]:
    def register(writer: Writer) -> Writer:
        WRITERS[name] = dataset, writer
        return writer

    return register


# Captions


def sentences(number: int) -> list[str]:
    return [f"Caption {k} of picture {number}, naïve." for k in range(5 + number % 2)]


@layout("coco_captions/karpathy-parquet", "coco_captions")
def coco_parquet(folder: Path) -> dict[str, Any]:
    columns = {
        "filepath": S, "sentids": pa.list_(I64), "filename": S, "imgid": I64, "split": S,
        "sentences": pa.list_(S), "cocoid": I64, "url": S,
    }  # fmt: skip

    def row(number: int, split: str) -> dict[str, Any]:
        where = "train2014" if split == "train" else "val2014"
        file = f"COCO_{where}_{number:012d}.jpg"
        put(folder / "pictures" / where / file, number)
        texts = sentences(number)
        return {
            "filepath": where, "sentids": list(range(len(texts))), "filename": file, "imgid": number, "split": split,
            "sentences": texts, "cocoid": number, "url": f"http://images.cocodataset.org/{where}/{file}",
        }  # fmt: skip

    data = folder / "coco" / "data"
    parquet(data / "train-00000-of-00001.parquet", columns, [row(n, "train") for n in range(ROWS)])
    parquet(data / "restval-00000-of-00001.parquet", columns, [row(300 + n, "restval") for n in range(FEW)])
    parquet(data / "validation-00000-of-00001.parquet", columns, [row(400 + n, "val") for n in range(FEW)])
    parquet(data / "test-00000-of-00001.parquet", columns, [row(500 + n, "test") for n in range(FEW)])
    return {"path": str(folder / "coco"), "images": str(folder / "pictures")}


@layout("coco_captions/karpathy-json", "coco_captions")
def coco_karpathy_json(folder: Path) -> dict[str, Any]:
    images = []
    for number in range(40):
        split = ("train", "train", "restval", "val", "test")[number % 5]
        where = "train2014" if split == "train" else "val2014"
        file = f"COCO_{where}_{number:012d}.jpg"
        put(folder / where / file, number)
        raw = [
            {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": 10 * number + k}
            for k, text in enumerate(sentences(number))
        ]
        images.append({
            "sentids": [sentence["sentid"] for sentence in raw], "imgid": number, "sentences": raw, "split": split,
            "filename": file, "filepath": where, "cocoid": number,
        })  # fmt: skip
    dump(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return {"path": str(folder)}


@layout("coco_captions/official", "coco_captions")
def coco_official(folder: Path) -> dict[str, Any]:
    for subset, count in (("train2017", ROWS), ("val2017", FEW)):
        images, annotations = [], []
        for number in range(count):
            file = f"{number:012d}.jpg"
            put(folder / subset / file, number)
            images.append({
                "license": 4, "file_name": file, "coco_url": "", "height": 6, "width": 8, "date_captured": "",
                "flickr_url": "", "id": number,
            })  # fmt: skip
            annotations.append({"image_id": number, "id": 9000 + number, "caption": f"A thing, number {number}. "})
        document = {
            "info": {"year": 2017}, "licenses": [{"id": 4}], "images": images[::-1], "annotations": annotations,
        }  # fmt: skip
        dump(folder / "annotations" / f"captions_{subset}.json", document)
    return {"path": str(folder)}


@layout("laion/img2dataset-files", "laion")
def laion_files(folder: Path) -> dict[str, Any]:
    columns = {
        "url": S, "caption": S, "key": S, "status": S, "error_message": S, "width": I64, "height": I64,
        "original_width": I64, "original_height": I64, "exif": S, "sha256": S,
    }  # fmt: skip
    for shard in range(2):
        rows = []
        for number in range(150):
            key = f"{shard:05d}{number:04d}"
            failed = number % 10 == 3
            if not failed:
                put(folder / f"{shard:05d}" / f"{key}.jpg", number)
            rows.append({
                "url": f"https://example.org/{key}.jpg", "caption": f"alt text {key}", "key": key,
                "status": "failed_to_download" if failed else "success",
                "error_message": "HTTP Error 404" if failed else None, "width": None if failed else 8,
                "height": None if failed else 6, "original_width": 8, "original_height": 6, "exif": "{}",
                "sha256": None if failed else "0" * 64,
            })  # fmt: skip
        parquet(folder / f"{shard:05d}.parquet", columns, rows)
    return {"path": str(folder)}


@layout("laion/webdataset", "laion")
def laion_tars(folder: Path) -> dict[str, Any]:
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(ROWS // 2):
                key = f"{shard:05d}{number:04d}"
                members = {"jpg": picture(number, "JPEG"), "json": json.dumps({"caption": f"words {key}"}).encode()}
                if number % 2:
                    members["txt"] = f"words {key}, ümlaut".encode()
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return {"path": str(folder)}


@layout("laion/addresses", "laion")
def laion_addresses(folder: Path) -> dict[str, Any]:
    columns = {
        "URL": S, "TEXT": S, "WIDTH": I32, "HEIGHT": I32, "similarity": F64, "hash": I64, "punsafe": F32,
        "pwatermark": F32,
    }  # fmt: skip
    rows = []
    for number in range(ROWS):
        address = f"https://example.org/{number}.jpg"
        put(folder / "pictures" / f"{hashlib.sha256(address.encode()).hexdigest()}.jpg", number)
        rows.append({
            "URL": address, "TEXT": f"alt text {number}", "WIDTH": 8, "HEIGHT": 6, "similarity": 0.3, "hash": number,
            "punsafe": 0.0, "pwatermark": 0.1,
        })  # fmt: skip
    parquet(folder / "table" / "part-00000-fcd86c9b-36f4.snappy.parquet", columns, rows)
    return {"path": str(folder / "table"), "images": str(folder / "pictures")}


@layout("pixmo/addresses", "pixmo")
def pixmo_addresses(folder: Path) -> dict[str, Any]:
    rows = []
    for number in range(ROWS):
        address = f"https://example.org/{number}.png"
        put(folder / "pictures" / f"{hashlib.sha256(address.encode()).hexdigest()}.png", number)
        rows.append({"image_url": address, "caption": f"A long caption {number}.", "transcripts": ["uh, a thing"]})
    shards(folder / "data", "train", {"image_url": S, "caption": S, "transcripts": pa.list_(S)}, rows)
    return {"path": str(folder), "images": str(folder / "pictures")}


@layout("pixmo/embedded", "pixmo")
def pixmo_embedded(folder: Path) -> dict[str, Any]:
    columns = {"image": IMAGE, "image_url": S, "caption": S, "transcripts": pa.list_(S)}
    rows = [
        {"image": embedded(n), "image_url": f"https://example.org/{n}", "caption": f"Long {n}.", "transcripts": []}
        for n in range(ROWS)
    ]
    shards(folder / "data", "train", columns, rows)
    return {"path": str(folder)}


# Instructions


def llava_rows(folder: Path, place: str, count: int = ROWS) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        file = f"{number // 2:012d}.jpg"
        put(folder / place / file, number // 2)
        mark = ("<image>\nWhat is this?", "What is this?\n<image>")[number % 2]
        turns = [("human", mark), ("gpt", f"It is thing {number}."), ("human", "Sure?"), ("gpt", "Yes.")]
        rows.append({
            "id": f"{number // 2:012d}", "image": file,
            "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
        })  # fmt: skip
    return rows


@layout("llava_instruct/150k", "llava_instruct")
def llava_150k(folder: Path) -> dict[str, Any]:
    dump(folder / "llava_instruct_150k.json", llava_rows(folder, "pictures/train2017"))
    return {"path": str(folder), "images": str(folder / "pictures")}


@layout("llava_instruct/mix665k", "llava_instruct")
def llava_mix(folder: Path) -> dict[str, Any]:
    rows = llava_rows(folder, "coco/train2017")
    for row in rows:
        row["image"] = f"coco/train2017/{row['image']}"
    text = {
        "id": "sharegpt",
        "model": "",
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "cut"},
        ],
    }
    dump(folder / "llava_v1_5_mix665k.json", [text, *rows])
    return {"path": str(folder / "llava_v1_5_mix665k.json"), "file": "llava_v1_5_mix665k.json", "images": str(folder)}


@layout("sharegpt4v/cap100k", "sharegpt4v")
def sharegpt4v(folder: Path) -> dict[str, Any]:
    rows = llava_rows(folder, "coco/train2017", 2 * ROWS)
    for row in rows:
        row["image"] = f"coco/train2017/{row['image']}"
        row["conversations"] = row["conversations"][:2]
    dump(folder / "sharegpt4v_instruct_gpt4-vision_cap100k.json", rows)
    return {"path": str(folder)}


@layout("the_cauldron/parquet", "the_cauldron")
def the_cauldron(folder: Path) -> dict[str, Any]:
    columns = {"images": pa.list_(IMAGE), "texts": pa.list_(struct(user=S, assistant=S, source=S))}
    for subset in ("ai2d", "nlvr2"):
        rows = [
            {
                "images": [embedded(n)] * (2 if subset == "nlvr2" else 1),
                "texts": [
                    {"user": f"Question {k}?", "assistant": f"Answer {n}.", "source": subset} for k in range(1 + n % 2)
                ],
            }
            for n in range(ROWS)
        ]
        parquet(folder / subset / "train-00000-of-00001-2ce340398c113b79.parquet", columns, rows)
    return {"path": str(folder), "subset": ["ai2d", "nlvr2"]}


# Questions with ten answers

VQA_ANSWER = {"answer": S, "answer_confidence": S, "answer_id": I64}


def ten(number: int) -> list[dict[str, Any]]:
    """Six say one thing, four another, which comes first."""
    words = ["netting"] * 4 + [f"net {number}"] * 6
    return [{"answer": w, "answer_confidence": "yes", "answer_id": k + 1} for k, w in enumerate(words)]


@layout("vqav2/parquet", "vqav2")
def vqav2_parquet(folder: Path) -> dict[str, Any]:
    columns = {
        "question_type": S, "multiple_choice_answer": S, "answers": pa.list_(struct(**VQA_ANSWER)), "image_id": I64,
        "answer_type": S, "question_id": I64, "question": S, "image": IMAGE,
    }  # fmt: skip
    rows = [
        {
            "question_type": "what is this", "multiple_choice_answer": f"net {n}", "answers": ten(n), "image_id": n,
            "answer_type": "other", "question_id": 1000 * n, "question": f"What is this, number {n}?",
            "image": embedded(n),
        }
        for n in range(FEW)
    ]  # fmt: skip
    shards(folder / "data", "validation", columns, rows)
    return {"path": str(folder)}


def vqa_challenge(folder: Path, prefix: str, raw: bool) -> dict[str, Any]:
    for subset, count in (("train2014", ROWS), ("val2014", FEW)):
        questions, annotations = [], []
        for number in range(count):
            put(folder / "pictures" / subset / f"COCO_{subset}_{number // 3:012d}.jpg", number // 3)
            question_id = 1000 * (number // 3) + number % 3
            questions.append({"image_id": number // 3, "question": f"Question {number}?", "question_id": question_id})
            answers = ten(number)
            if raw:
                answers = [{"answer_id": a["answer_id"], "raw_answer": "Nets", **a} for a in answers]
            annotations.append({
                "question_type": "what is", "multiple_choice_answer": f"net {number}", "answers": answers,
                "image_id": number // 3, "answer_type": "other", "question_id": question_id,
            })  # fmt: skip
            if raw:
                del annotations[-1]["multiple_choice_answer"]
                annotations[-1]["confidence"] = 3
        head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {"name": "x"}}
        dump(folder / f"{prefix}OpenEnded_mscoco_{subset}_questions.json", {**head, "questions": questions[::-1]})
        dump(folder / f"{prefix}mscoco_{subset}_annotations.json", {**head, "annotations": annotations})
    return {"path": str(folder), "images": str(folder / "pictures")}


@layout("vqav2/official", "vqav2")
def vqav2_official(folder: Path) -> dict[str, Any]:
    return vqa_challenge(folder, "v2_", raw=False)


@layout("okvqa/parquet", "okvqa")
def okvqa_parquet(folder: Path) -> dict[str, Any]:
    columns = {
        "question_id": S, "image": IMAGE, "question": S, "answers": pa.list_(S), "question_type": S, "answer_type": S,
    }  # fmt: skip
    rows = [
        {
            "question_id": str(n), "image": embedded(n), "question": f"What sport, number {n}?",
            "answers": [a["answer"] for a in ten(n)], "question_type": "four", "answer_type": "other",
        }
        for n in range(FEW)
    ]  # fmt: skip
    shards(folder / "data", "val2014", columns, rows)
    return {"path": str(folder)}


@layout("okvqa/official", "okvqa")
def okvqa_official(folder: Path) -> dict[str, Any]:
    return vqa_challenge(folder, "", raw=True)


def aokvqa_row(number: int) -> dict[str, Any]:
    return {
        "question_id": f"22MexNkBPpdZGX{number}", "question": f"What is awaited, number {number}?",
        "choices": ["skateboarder", "train", "delivery", "cab"], "correct_choice_idx": number % 4,
        "direct_answers": ["ride", "ride", "bus", "taxi", "travelling", "traffic", "taxi", "cab", "cab", "ride"],
        "difficult_direct_answer": False, "rationales": ["A train would not be on the street."] * 3,
    }  # fmt: skip


@layout("aokvqa/parquet", "aokvqa")
def aokvqa_parquet(folder: Path) -> dict[str, Any]:
    columns = {
        "image": IMAGE, "question_id": S, "question": S, "choices": pa.list_(S), "correct_choice_idx": I8,
        "direct_answers": S, "difficult_direct_answer": B, "rationales": pa.list_(S),
    }  # fmt: skip
    for split, count in (("train", ROWS), ("validation", FEW)):
        rows = [
            {"image": embedded(n), **aokvqa_row(n), "direct_answers": str(aokvqa_row(n)["direct_answers"])}
            for n in range(count)
        ]
        parquet(folder / "data" / f"{split}-00000-of-00001-d306bf3ad53b6618.parquet", columns, rows)
    return {"path": str(folder)}


@layout("aokvqa/official", "aokvqa")
def aokvqa_official(folder: Path) -> dict[str, Any]:
    for split, count in (("train", ROWS), ("val", FEW)):
        rows = []
        for n in range(count):
            put(folder / "coco" / f"{split}2017" / f"{n:012d}.jpg", n)
            rows.append({"split": split, "image_id": n, **aokvqa_row(n)})
        dump(folder / f"aokvqa_v1p0_{split}.json", rows)
    return {"path": str(folder), "images": str(folder / "coco"), "form": "choices"}


GQA_COLUMNS = {
    "id": S, "imageId": S, "question": S, "answer": S, "fullAnswer": S, "isBalanced": B,
    "groups": struct(**{"global": S, "local": S}), "entailed": S, "equivalent": S,
    "types": struct(structural=S, semantic=S, detailed=S),
    "annotations": struct(question=pa.list_(struct(objectId=S, value=S))),
    "semantic": pa.list_(struct(operation=S, argument=S, dependencies=pa.list_(I32))), "semanticStr": S,
}  # fmt: skip


def gqa_row(number: int) -> dict[str, Any]:
    return {
        "imageId": str(2370000 + number // 2), "question": f"Is it red, number {number}?", "answer": "yes",
        "fullAnswer": "Yes, it is red.", "isBalanced": True, "groups": {"global": "", "local": "06-sky_dark"},
        "entailed": "", "equivalent": "", "types": {"structural": "verify", "semantic": "attr", "detailed": "x"},
        "annotations": {"question": []}, "semantic": [], "semanticStr": "select: sky",
    }  # fmt: skip


@layout("gqa/parquet", "gqa")
def gqa_parquet(folder: Path) -> dict[str, Any]:
    for split, count in (("train", ROWS), ("val", FEW), ("testdev", FEW)):
        rows = [{"id": f"0{n}", **gqa_row(n)} for n in range(count)]
        parquet(folder / f"{split}_balanced_instructions" / f"{split}-00000-of-00001.parquet", GQA_COLUMNS, rows)
        pictures = [{"id": str(2370000 + n), "image": embedded(n)} for n in reversed(range((count + 1) // 2))]
        shards(folder / f"{split}_balanced_images", split, {"id": S, "image": IMAGE}, pictures)
    return {"path": str(folder)}


@layout("gqa/official", "gqa")
def gqa_official(folder: Path) -> dict[str, Any]:
    for split, count in (("train", ROWS), ("val", FEW), ("testdev", FEW)):
        document = {}
        for n in range(count):
            document[f"0{n}"] = gqa_row(n)
            put(folder / "images" / f"{2370000 + n // 2}.jpg", n // 2)
        dump(folder / "questions1.2" / f"{split}_balanced_questions.json", document)
    return {"path": str(folder)}


@layout("textvqa/parquet", "textvqa")
def textvqa_parquet(folder: Path) -> dict[str, Any]:
    columns = {
        "image_id": S, "question_id": I32, "question": S, "question_tokens": pa.list_(S), "image": IMAGE,
        "image_width": I32, "image_height": I32, "flickr_original_url": S, "flickr_300k_url": S,
        "answers": pa.list_(S), "image_classes": pa.list_(S), "set_name": S, "ocr_tokens": pa.list_(S),
    }  # fmt: skip
    for split, count in (("train", ROWS), ("validation", FEW), ("test", FEW)):
        rows = [
            {
                "image_id": f"0054c91397f2fe0{n}", "question_id": n, "question": f"What brand, number {n}?",
                "question_tokens": ["what", "brand"], "image": embedded(n), "image_width": 8, "image_height": 6,
                "flickr_original_url": "", "flickr_300k_url": "",
                "answers": [""] * 10 if split == "test" else ["nokia"] * 7 + ["toshiba"] * 3,
                "image_classes": ["Mobile phone"], "set_name": split, "ocr_tokens": ["NOKIA"],
            }
            for n in range(count)
        ]  # fmt: skip
        shards(folder / "data", split, columns, rows)
    return {"path": str(folder)}


@layout("textvqa/official", "textvqa")
def textvqa_official(folder: Path) -> dict[str, Any]:
    for split, count in (("train", ROWS), ("val", FEW)):
        data = []
        for n in range(count):
            put(folder / "train_images" / f"0054c{n}.jpg", n)
            data.append({
                "question": f"What brand, number {n}?", "image_id": f"0054c{n}", "image_classes": ["Belt"],
                "flickr_original_url": "", "flickr_300k_url": "", "image_width": 8, "image_height": 6,
                "answers": ["nokia"] * 10, "question_tokens": ["what"], "question_id": n, "set_name": split,
            })  # fmt: skip
        dump(
            folder / f"TextVQA_0.5.1_{split}.json",
            {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": data},
        )
    return {"path": str(folder)}


@layout("stvqa/parquet", "stvqa")
def stvqa_parquet(folder: Path) -> dict[str, Any]:
    columns = {"image": IMAGE, "qas": pa.list_(struct(question=S, answers=pa.list_(S)))}
    rows = [
        {
            "image": embedded(n),
            "qas": [{"question": f"What is on sign {k}?", "answers": ["stop", f"stop {n}"]} for k in range(1 + n % 3)],
        }
        for n in range(ROWS)
    ]
    shards(folder / "data", "train", columns, rows)
    return {"path": str(folder)}


@layout("stvqa/official", "stvqa")
def stvqa_official(folder: Path) -> dict[str, Any]:
    data = []
    for n in range(ROWS):
        file = f"coco-text/COCO_train2014_{n // 2:012d}.jpg"
        put(folder / "train" / file, n // 2)
        data.append({
            "set_name": "train", "question_id": n, "question": f"What is on sign {n}?", "image_classes": [],
            "dataset": "coco-text", "file_name": file.split("/")[1], "file_path": file, "answers": ["stop"],
        })  # fmt: skip
    dump(folder / "train_task_3.json", {"version": 1.0, "task_name": "task 3", "data": data})
    return {"path": str(folder)}


@layout("docvqa/parquet", "docvqa")
def docvqa_parquet(folder: Path) -> dict[str, Any]:
    columns = {
        "questionId": S, "question": S, "question_types": pa.list_(S), "image": IMAGE, "docId": I64,
        "ucsf_document_id": S, "ucsf_document_page_no": S, "answers": pa.list_(S), "data_split": S,
    }  # fmt: skip
    for split, count in (("train", ROWS), ("validation", FEW), ("test", FEW)):
        rows = [
            {
                "questionId": str(n), "question": f"What date, number {n}?", "question_types": ["handwritten"],
                "image": embedded(n), "docId": n, "ucsf_document_id": "xnbl0037", "ucsf_document_page_no": "1",
                "answers": None if split == "test" else ["1/8/93", "Jan 8"], "data_split": split,
            }
            for n in range(count)
        ]  # fmt: skip
        shards(folder / "DocVQA", split, columns, rows)
    return {"path": str(folder)}


@layout("docvqa/official", "docvqa")
def docvqa_official(folder: Path) -> dict[str, Any]:
    for split, count in (("train", ROWS), ("val", FEW)):
        data = []
        for n in range(count):
            put(folder / split / "documents" / f"xnbl{n:04d}_1.png", n)
            data.append({
                "questionId": n, "question": f"What date, number {n}?", "question_types": ["form"],
                "image": f"documents/xnbl{n:04d}_1.png", "docId": n, "ucsf_document_id": "xnbl0037",
                "ucsf_document_page_no": "1", "answers": ["1/8/93"], "data_split": split,
            })  # fmt: skip
        document = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": split, "data": data}
        dump(folder / f"{split}_v1.0_withQT.json", document)
    return {"path": str(folder)}


@layout("chartqa/parquet", "chartqa")
def chartqa_parquet(folder: Path) -> dict[str, Any]:
    columns = {"image": IMAGE, "query": S, "label": pa.list_(S), "human_or_machine": I64}
    for split, count in (("train", ROWS), ("val", FEW), ("test", FEW)):
        rows = [
            {"image": embedded(n), "query": f"How many in {n}?", "label": [str(n)], "human_or_machine": n % 2}
            for n in range(count)
        ]
        parquet(folder / "data" / f"{split}-00000-of-00001-194c9400785577a2.parquet", columns, rows)
    return {"path": str(folder)}


@layout("chartqa/official", "chartqa")
def chartqa_official(folder: Path) -> dict[str, Any]:
    for split, count in (("train", ROWS), ("val", FEW), ("test", FEW)):
        for kind in ("human", "augmented"):
            rows = []
            for n in range(count):
                put(folder / split / "png" / f"{kind}{n}.png", n)
                rows.append({"imgname": f"{kind}{n}.png", "query": f"How many in {n}?", "label": str(n)})
            dump(folder / split / f"{split}_{kind}.json", rows)
    return {"path": str(folder)}


# Choices


@layout("ai2d/parquet", "ai2d")
def ai2d_parquet(folder: Path) -> dict[str, Any]:
    columns = {"question": S, "options": pa.list_(S), "answer": S, "image": IMAGE}
    rows = [
        {"question": f"Which one, {n}?", "options": ["a", "b", "c", "d"], "answer": str(n % 4), "image": embedded(n)}
        for n in range(FEW)
    ]
    shards(folder / "data", "test", columns, rows)
    return {"path": str(folder)}


@layout("ai2d/official", "ai2d")
def ai2d_official(folder: Path) -> dict[str, Any]:
    for n in range(ROWS):
        put(folder / "images" / f"{n}.png", n)
        questions = {
            f"What eats {k}?": {
                "abcLabel": k == 2, "answerTexts": ["ears", "nose", "mouth", "face"], "correctAnswer": k,
                "questionId": f"{n}.png-{k}",
            }
            for k in range(3)
        }  # fmt: skip
        dump(folder / "questions" / f"{n}.png.json", {"imageName": f"{n}.png", "questions": questions})
    (folder / "ai2d_test_ids.csv").write_text("\n".join(str(n) for n in range(0, ROWS, 5)) + "\n")
    dump(folder / "categories.json", {"0.png": "foodChainsWebs"})
    return {"path": str(folder)}


def scienceqa_row(number: int) -> dict[str, Any]:
    return {
        "question": f"Which is a mineral, {number}?", "choices": ["Bone", "Coral", "Quartz"][: 2 + number % 2],
        "answer": number % 2, "hint": "Bone is made by an animal." if number % 3 else "", "task": "closed choice",
        "grade": "grade6", "subject": "natural science", "topic": "earth-science", "category": "Rocks",
        "skill": "Identify minerals", "lecture": "Minerals are…", "solution": "Bone is not.",
    }  # fmt: skip


@layout("scienceqa/parquet", "scienceqa")
def scienceqa_parquet(folder: Path) -> dict[str, Any]:
    names = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    columns = {"image": IMAGE, "question": S, "choices": pa.list_(S), "answer": I8, **dict.fromkeys(names, S)}
    for split, count in (("train", ROWS), ("validation", FEW), ("test", FEW)):
        rows = [{"image": embedded(n) if n % 2 else None, **scienceqa_row(n)} for n in range(count)]
        parquet(folder / "data" / f"{split}-00000-of-00001-1028f23e353fbe3e.parquet", columns, rows)
    return {"path": str(folder)}


@layout("scienceqa/official", "scienceqa")
def scienceqa_official(folder: Path) -> dict[str, Any]:
    problems = {}
    for n in range(60):
        split = ("train", "train", "val", "test")[n % 4]
        if n % 2:
            put(folder / "images" / split / str(n) / "image.png", n)
        problems[str(n)] = {**scienceqa_row(n), "image": "image.png" if n % 2 else None, "split": split}
    dump(folder / "problems.json", problems)
    return {"path": str(folder)}
