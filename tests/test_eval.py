"""Evaluation on engines whose behaviour is known: what is asked, what is kept, what the controls show."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from pydantic import BaseModel, ConfigDict

from components.builtin import ghostvis_components
from components.images import decode
from ghostvis_cli import session
from ghostvis_cli.app import run as ghostvis
from ghostvis_cli.evaluate import default_out, task_names
from ghostvis_plugins import task
from ghostvis_plugins.errors import ConfigError, DataError, GhostVisError
from ghostvis_plugins.manager import Registry
from ghostvis_plugins.types import Completion, Conversation, EvalDoc, Generation, Image, Score, user
from stages.eval import Run, answer, evaluate, run_task
from stages.eval_controls import controlled, priors, white_picture
from stages.eval_report import table
from stages.eval_rows import KEY_FIELDS, Hasher, RowStore

PICTURES = 12
WHAT, IS_IT = "which one?", "is it even?"


def picture(number: int) -> Image:
    return Image(data=f"picture {number}".encode())


def number_in(prompt: Conversation) -> int | None:
    """What a perfect eye sees: the number of the picture, None without one of ours."""
    data = prompt.images[0].data if prompt.images else None
    return int(data.split()[1]) if data and data.startswith(b"picture") else None


class Numbers:
    """Two questions about each picture, one open and one yes/no."""

    name, version, metric = "numbers", "1", "exact_match"
    generation = Generation(max_new_tokens=4)

    def docs(self) -> Sequence[EvalDoc]:
        return [
            EvalDoc(
                id=f"{number}/{tag}",
                prompt=Conversation((user(picture(number), question),)),
                target=target,
                cluster=str(number),
                tags=(tag,),
            )
            for number in range(PICTURES)
            for tag, question, target in (
                ("open", WHAT, str(number)),
                ("yes_no", IS_IT, "no" if number % 2 else "yes"),
            )
        ]

    def score(self, doc: EvalDoc, answer: str) -> Mapping[str, float]:
        return {"exact_match": float(answer == doc.target), "length": float(len(answer))}


class Names(Numbers):
    """Ranking: several draws of choices per picture."""

    name, metric = "names", "accuracy"

    def docs(self) -> Sequence[EvalDoc]:
        return [
            EvalDoc(
                id=f"{number}/{draw}",
                prompt=Conversation((user(picture(number), WHAT),)),
                target=str(number),
                choices=tuple(sorted({str(number), *(str((number + draw + i) % PICTURES) for i in (1, 2, 3))})),
                cluster=str(number),
            )
            for number in range(PICTURES)
            for draw in range(3)
        ]

    def score(self, doc: EvalDoc, answer: str) -> Mapping[str, float]:
        return {"accuracy": float(answer == doc.target)}


class ScriptedEngine:
    """Answers by a function of the prompt and remembers what it was asked."""

    capabilities = frozenset({"images", "score", "batch"})

    def __init__(self, reply: Callable[[Conversation], str], fail_after: int | None = None) -> None:
        self.reply = reply
        self.asked: list[Conversation] = []
        self.batches: list[int] = []
        self.scored: list[tuple[str, ...]] = []
        self.fail_after = fail_after

    def generate(self, prompts: Sequence[Conversation], generation: Generation) -> list[Completion]:
        if self.fail_after is not None and len(self.batches) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += prompts
        self.batches.append(len(prompts))
        texts = [self.reply(prompt) for prompt in prompts]
        return [Completion(text=text, ids=(1,) * 3, logprobs=(-1.0,) * 3, finish_reason="stop") for text in texts]

    def score(self, prompt: Conversation, continuations: Sequence[str]) -> list[Score]:
        self.scored.append(tuple(continuations))
        likely = self.reply(prompt)
        return [Score(logprob=-1.0 if text == likely else -5.0, tokens=1) for text in continuations]


def sighted(prompt: Conversation) -> str:
    number = number_in(prompt)
    if number is None:
        return "yes"
    return str(number) if prompt.messages[-1].text == WHAT else ("no" if number % 2 else "yes")


def blind(prompt: Conversation) -> str:
    return "yes"


def run_on(tmp_path: Path, engine: Any, task: Any = None, **kwargs: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    path = tmp_path / "samples.jsonl"
    with RowStore(path) as store:
        run = Run(engine, task or Numbers(), store, weights="w" * 64, batch_size=5)
        result = run_task(run, **kwargs)
    return result, [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_that_looks_and_one_that_does_not(tmp_path: Path) -> None:
    seeing, _ = run_on(tmp_path / "a", ScriptedEngine(sighted))
    guessing, _ = run_on(tmp_path / "b", ScriptedEngine(blind))
    assert seeing["model"]["score"]["mean"] == 1.0
    assert seeing["controls"]["permuted"]["tags"]["open"]["mean"] == 0.0  # never its own picture
    assert seeing["controls"]["blank"]["score"]["mean"] == 0.25
    assert seeing["controls"]["blind"]["score"]["mean"] == 0.25
    for condition in ("blind", "blank", "permuted"):
        assert guessing["controls"][condition]["score"]["mean"] == guessing["model"]["score"]["mean"] == 0.25
    assert guessing["model"]["tags"]["yes_no"]["mean"] == 0.5
    assert guessing["model"]["figures"] == {"length": 3.0}


def test_estimates_resample_pictures(tmp_path: Path) -> None:
    result, _ = run_on(tmp_path, ScriptedEngine(sighted), controls=())
    assert (result["model"]["score"]["n"], result["model"]["score"]["clusters"]) == (24, PICTURES)
    assert result["model"]["tags"]["open"]["n"] == 12
    assert result["controls"] == {}


def test_majority_and_best_blind_guess(tmp_path: Path) -> None:
    result, _ = run_on(tmp_path, ScriptedEngine(sighted), controls=("majority",))
    majority, best = result["controls"]["majority"], result["controls"]["per_question"]
    assert majority["answer"] == "no"  # as frequent as yes, and before it in the alphabet
    assert majority["source"] == "the documents themselves"
    assert majority["tags"]["open"]["mean"] == 0.0
    assert best["tags"]["open"]["mean"] == pytest.approx(1 / PICTURES)


def test_rows_hold_the_final_interface(tmp_path: Path) -> None:
    _, rows = run_on(tmp_path, ScriptedEngine(sighted), controls=("blind",))
    assert len(rows) == 48
    for row in rows:
        assert {"key", "condition", "output", "scores", "target", *KEY_FIELDS} <= set(row)
        assert row["weights"] == "w" * 64
        assert row["generation"]["max_new_tokens"] == 4
    first = next(row for row in rows if row["doc"] == "3/open" and row["condition"] == "model")
    assert (first["output"], first["scores"]["exact_match"], first["target"]) == ("3", 1.0, "3")
    assert len({row["key"] for row in rows}) == 48


def test_equal_prompts_are_asked_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(sighted)
    run_on(tmp_path, engine, controls=("blind", "blank"))
    assert len(engine.asked) == 24 + 2 + 2
    assert max(engine.batches) <= 5


def test_documents_of_a_picture_are_neighbours(tmp_path: Path) -> None:
    engine = ScriptedEngine(sighted)
    run_on(tmp_path, engine, controls=())
    numbers = [number_in(prompt) for prompt in engine.asked]
    changes = sum(a != b for a, b in pairwise(numbers))
    assert changes == PICTURES - 1


def test_a_second_run_asks_nothing_and_gives_the_same(tmp_path: Path) -> None:
    first, rows = run_on(tmp_path, ScriptedEngine(sighted))
    engine = ScriptedEngine(sighted)
    second, again = run_on(tmp_path, engine)
    assert engine.asked == []
    assert again == rows
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_on(tmp_path, ScriptedEngine(sighted, fail_after=2), controls=())
    path = tmp_path / "samples.jsonl"
    assert len(path.read_text().splitlines()) == 10
    with path.open("a") as file:  # the line that was being written when the power went
        file.write('{"key": "abc", "weights"')
    engine = ScriptedEngine(sighted)
    result, rows = run_on(tmp_path, engine, controls=())
    assert len(engine.asked) == 14
    assert len(rows) == 24
    assert result["model"]["score"]["mean"] == 1.0


@pytest.mark.parametrize("change", ["weights", "version", "generation", "picture"])
def test_an_answer_is_reused_only_when_nothing_it_depends_on_has_changed(tmp_path: Path, change: str) -> None:
    run_on(tmp_path, ScriptedEngine(sighted), controls=())
    task, engine = Numbers(), ScriptedEngine(sighted)
    docs = list(task.docs())
    weights = "w" * 64
    if change == "weights":
        weights = "v" * 64
    elif change == "version":
        task.version = "2"
    elif change == "generation":
        task.generation = Generation(max_new_tokens=5)
    else:
        docs = [docs[0], *controlled(docs[1:], "blank", identity=Hasher().image, seed=0)]
    with RowStore(tmp_path / "samples.jsonl") as store:
        answer(Run(engine, task, store, weights=weights), "model", docs)
    assert len(engine.asked) == (2 if change == "picture" else 24)  # blank: two questions; the first document is kept


def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"key": "a"}\nnonsense\n')
    with pytest.raises(DataError, match=r"samples.jsonl line 2"):
        RowStore(tmp_path / "samples.jsonl")


def test_limits_nest_and_spread_over_pictures(tmp_path: Path) -> None:
    engine = ScriptedEngine(sighted)
    small, few = run_on(tmp_path, engine, controls=(), limit=6)
    assert small["model"]["score"]["n"] == 6
    assert len({row["cluster"] for row in few}) > 3
    large, more = run_on(tmp_path, engine, controls=("permuted",), limit=10, control_limit=4)
    assert more[:6] == few
    assert (large["model"]["score"]["n"], large["controls"]["permuted"]["score"]["n"]) == (10, 4)
    assert large["documents"] == 24


def test_ranking_scores_each_name_of_a_picture_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(sighted)
    result, rows = run_on(tmp_path, engine, Names(), controls=("majority", "blind"))
    assert result["model"]["score"]["mean"] == 1.0
    assert result["chance"] == 0.25
    assert set(result["controls"]) == {"blind"}  # no answer is common to all documents
    assert all(len(names) == len(set(names)) <= 5 for names in engine.scored)
    about_first = {name for names in engine.scored[:2] for name in names}
    assert len(about_first) >= 6
    assert rows[0]["nll"] == [1.0 if choice == rows[0]["output"] else 5.0 for choice in rows[0]["choices"]]


def test_ranking_refuses_nan_and_engines_that_cannot_score(tmp_path: Path) -> None:
    engine = ScriptedEngine(sighted)
    engine.score = lambda prompt, texts: [Score(logprob=float("nan"), tokens=1)] * len(texts)  # type: ignore[method-assign]
    with pytest.raises(GhostVisError, match="document 0/0"):
        run_on(tmp_path / "a", engine, Names())
    engine.capabilities = frozenset()
    with pytest.raises(ConfigError, match="ranks by likelihood"):
        run_on(tmp_path / "b", engine, Names())


def test_permuted_never_gives_a_document_its_own_picture() -> None:
    docs = Numbers().docs()
    for seed in range(20):
        permuted = controlled(docs, "permuted", identity=Hasher().image, seed=seed)
        pairs = [(number_in(a.prompt), number_in(b.prompt)) for a, b in zip(docs, permuted, strict=True)]
        assert all(own != other for own, other in pairs)
        assert len(set(pairs)) == PICTURES  # both questions about a picture see the same other one
        assert {other for _, other in pairs} == set(range(PICTURES))
    assert controlled(docs[:2], "permuted", identity=Hasher().image, seed=0) == []  # one picture: nothing to swap


def test_blind_removes_the_picture_and_blank_is_white() -> None:
    doc = EvalDoc(id="1", prompt=Conversation((user(picture(0), "left?", picture(1)),)), target="x")
    identity = Hasher().image
    (without,) = controlled([doc], "blind", identity=identity, seed=0)
    assert without.prompt.images == ()
    assert without.prompt.messages[0].text == "left?"
    (blank,) = controlled([doc], "blank", identity=identity, seed=0)
    assert [type(part).__name__ for part in blank.prompt.messages[0].parts] == ["Image", "Text", "Image"]
    white = decode(white_picture())
    assert white.getcolors() == [(64 * 64, (255, 255, 255))]
    text_only = EvalDoc(id="2", prompt=Conversation((user("left?"),)), target="x")
    assert controlled([text_only], "blank", identity=identity, seed=0) == []


def test_a_control_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    result, _ = run_on(tmp_path, ScriptedEngine(sighted), controls=("permuted",), limit=1)
    assert "skipped" in result["controls"]["permuted"]


def test_prior_of_an_unseen_question_is_the_majority() -> None:
    prior = priors(Numbers(), Numbers().docs()[:2])
    unseen = EvalDoc(id="x", prompt=Conversation((user("how many?"),)), target="1")
    assert prior.answer(unseen) == prior.majority == "0"


def test_prompt_hash_is_of_contents_not_of_paths(tmp_path: Path) -> None:
    hasher = Hasher()
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file, content in zip(files, (b"1", b"1", b"2"), strict=True):
        file.write_bytes(content)
    same, other = (hasher.conversation(Conversation((user(Image(path=str(f)), "?"),), id=f.name)) for f in files[:2])
    assert same == other
    assert same != hasher.conversation(Conversation((user(Image(path=str(files[2])), "?"),)))
    assert same != hasher.conversation(Conversation((user("?", Image(path=str(files[0]))),)))
    with pytest.raises(DataError, match=r"gone\.png"):
        hasher.conversation(Conversation((user(Image(path=str(tmp_path / "gone.png"))),)))


def test_table_shows_every_condition_with_its_interval(tmp_path: Path) -> None:
    result, _ = run_on(tmp_path, ScriptedEngine(sighted), control_limit=8)
    text = table({"model": "runs/x/model", "weights": "w" * 64, "tasks": {"numbers": result}})
    lines = text.splitlines()
    head = next(line.split() for line in lines if line.strip().startswith("n "))
    assert head == ["n", "model", "permuted", "blank", "blind", "majority", "per_question"]
    overall = next(line for line in lines if line.startswith("all"))
    assert overall.startswith("all     24  100.0 [100.0, 100.0]")
    assert any(line.startswith("open") for line in lines)
    assert any("permuted: with another document's picture; on 8 documents" in line for line in lines)
    assert max(map(len, lines)) <= 120


# --- with a real model, through the command -----------------------------------------------------------------------


class Squares(Numbers):
    """The same questions about pictures that can be decoded; ``size`` of them."""

    name = "squares"

    def __init__(self, size: int) -> None:
        self.size = size

    def docs(self) -> Sequence[EvalDoc]:
        def drawn(doc: EvalDoc) -> EvalDoc:
            buffer = io.BytesIO()
            PIL.Image.new("RGB", (8, 8), (20 * int(doc.cluster), 90, 200)).save(buffer, "PNG")
            image = Image(data=buffer.getvalue())
            return replace(doc, prompt=Conversation((user(image, doc.prompt.messages[0].text),), id=doc.id))

        return [drawn(doc) for doc in super().docs()[: 2 * self.size]]


class SquareNames(Squares):
    """Ranking on the same pictures."""

    name = "square_names"

    def docs(self) -> Sequence[EvalDoc]:
        return [replace(doc, choices=(doc.target, "something else")) for doc in super().docs()]


class Size(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 4


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The built-in components and two tasks of our own, also for the command line."""
    made = Registry.from_specs(
        [
            *ghostvis_components(),
            task("squares", config=Size, build=lambda config: Squares(config.size)),
            task("square_names", config=Size, build=lambda config: SquareNames(config.size)),
        ]
    )
    monkeypatch.setattr(session, "registry", lambda: made)
    return made


@pytest.fixture
def model_dir(
    tmp_path: Path,
    tiny_model: Any,
    tiny_values: Any,
    tiny_tokenizer: Any,
    tiny_config: Any,
    registry: Registry,
    monkeypatch: Any,
) -> Path:
    from components.weights import save_model

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "tiny" / "model"
    resolved = {"values": tiny_values}
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "resolved.json").write_text("{}")
    return save_model(folder, tiny_model, tiny_tokenizer, {**tiny_config, "eval": ["squares"]}, resolved)


def test_evaluate_a_model_directory(model_dir: Path, registry: Registry, tmp_path: Path) -> None:
    from components.weights import weights_hash

    out = tmp_path / "out"
    results = evaluate(model_dir, ["squares", "square_names"], registry, out, device="cpu", batch_size=3)
    assert results["weights"] == weights_hash(model_dir)
    assert results["dtype"] == "float32"
    assert results == json.loads((out / "results.json").read_text())
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 4 * 8  # two tasks, four conditions, eight documents
    assert all(row["generation"]["engine"]["name"] == "native" for row in rows)
    again = evaluate(model_dir, ["squares"], registry, out, device="cpu")
    assert again["tasks"]["squares"]["model"] == results["tasks"]["squares"]["model"]
    assert len((out / "samples.jsonl").read_text().splitlines()) == len(rows)


def test_batches_do_not_change_answers(model_dir: Path, registry: Registry, tmp_path: Path) -> None:
    def answers(batch_size: int) -> list[tuple[Any, ...]]:
        out = tmp_path / str(batch_size)
        evaluate(model_dir, ["squares", "square_names"], registry, out, device="cpu", batch_size=batch_size)
        rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
        return sorted((row["task"], row["condition"], row["doc"], row["output"]) for row in rows)

    assert answers(1) == answers(8)


def test_the_command_writes_a_table_for_people_and_json_for_programs(
    model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "vqa", "--model", "tiny", "--device", "cpu", "--blind"]
    assert ghostvis(command) == 0
    out, err = capfd.readouterr()
    assert "squares (version 1)" in out
    assert "majority" in out
    assert "vqa: squares" in err
    assert "runs/tiny/eval" in err
    assert ghostvis([*command, "--set", "squares.size=2", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["aliases"] == {"vqa": "squares"}
    assert document["tasks"]["squares"]["documents"] == 4
    assert set(document["tasks"]["squares"]["controls"]) == {"majority", "per_question", "blind"}
    assert (model_dir.parent / "eval" / "samples.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["squars"], 4, "Did you mean 'squares'"),
        (["squares", "--control", "blin"], 3, "Did you mean 'blind'"),
        (["squares", "--limit", "0"], 3, "at least 1"),
        (["squares", "--set", "squares.sise=2"], 3, "sise"),
        (["squares", "--set", "scenes.size=2"], 3, "not evaluated"),
        (["squares", "--engine", "natve"], 4, "Did you mean 'native'"),
    ],
)
def test_mistakes_are_explained(
    model_dir: Path, arguments: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ghostvis(["eval", *arguments, "--model", "tiny", "--device", "cpu"]) == code
    out, err = capfd.readouterr()
    assert message in err
    assert (out, "Traceback" in err) == ("", False)


def test_the_alias_needs_a_target(model_dir: Path, registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    config = model_dir / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eval": []}))
    assert ghostvis(["eval", "vqa", "--model", "tiny"]) == 4
    assert "names none" in capfd.readouterr().err
    with_vqav2 = Registry.from_specs([task("vqav2", config=Size, build=lambda config: Squares(config.size))])
    assert task_names(["vqa"], model_dir, with_vqav2) == (["vqav2"], {"vqa": "vqav2"})


def test_results_stay_with_the_run_or_beside_the_runs(tmp_path: Path, model_dir: Path) -> None:
    assert default_out(model_dir) == model_dir.parent / "eval"
    assert default_out(tmp_path / "elsewhere") == Path("runs/eval/elsewhere")
