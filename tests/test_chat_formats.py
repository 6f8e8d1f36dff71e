"""Chat formats: the strings and ids of the public templates, exact losses, and no way to type a control token."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from components import template_sandbox
from components.chat_formats import CHAT_FORMATS, CHATML, LLAMA3, QWEN3, QWEN25, SMOLLM2, detect, from_saved
from components.rendering import render, render_prompt
from components.tokenizers import CHAT_TEMPLATE, CONTROL_TOKENS, Tokenizer, bpe_description
from ghostvis_plugins.errors import DataError
from ghostvis_plugins.types import (
    Conversation,
    Document,
    Image,
    Message,
    Part,
    Text,
    ToolCall,
    ToolResult,
    assistant,
    system,
    user,
)

DATA = Path(__file__).parent / "data" / "chat"
FIXTURES = {name: json.loads((DATA / f"{name}.json").read_text()) for name in ("qwen2.5", "qwen3", "smollm2", "llama3")}
CASES = [
    pytest.param(name, case, id=f"{name}: {case['name']}") for name in FIXTURES for case in FIXTURES[name]["cases"]
]
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|fim_prefix|>"]
QWEN_WORDS = ["<tool_call>", "</tool_call>"]  # added, and not special
LLAMA_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>"]
LLAMA_TOKENS += ["<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
VOCABULARIES = {  # name of the format → how text is split, special tokens, other added tokens
    "qwen2.5": ("qwen2", QWEN_TOKENS, QWEN_WORDS),
    "qwen3": ("qwen2", QWEN_TOKENS, [*QWEN_WORDS, "<tool_response>", "</tool_response>", "<think>", "</think>"]),
    "smollm2": ("smollm", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"], []),
    "llama3": ("llama-bpe", LLAMA_TOKENS, []),
}
PICTURE = Image(data=b"a")


def learn(kind: str) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges from the fixtures themselves: what could merge across a boundary is there to do so."""
    backend = Backend.from_str(json.dumps(bpe_description({"a": 0}, [], [], kind)))
    backend.model = models.BPE()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    texts = [case["rendered"] for fixture in FIXTURES.values() for case in fixture["cases"]]
    backend.train_from_iterator(texts + ["\n\n", "\n\n\n", " \n", "  "] * 20, trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], model["merges"]


def describe(name: str) -> dict[str, Any]:
    """``tokenizer.json`` of a small vocabulary with the control tokens of a format's real one."""
    kind, special, words = VOCABULARIES[name]
    vocabulary, merges = learn(kind)
    added = [
        {"content": token, "id": len(vocabulary) + number, "special": token in special}
        for number, token in enumerate([*special, *words])
    ]
    return bpe_description(vocabulary, merges, added, kind)


DESCRIPTIONS = {name: describe(name) for name in VOCABULARIES}


def write(folder: Path, name: str, **config: Any) -> Path:
    """A folder as the hub has them, which says no more than ``config`` about its chat format."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(DESCRIPTIONS[name]))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("formats")
    return {name: write(root / name, name, ghostvis_chat_format=name) for name in VOCABULARIES}


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(folder) for name, folder in folders.items()}


def conversation(messages: list[dict[str, Any]]) -> Conversation:
    """Our own conversation from messages of the OpenAI shape."""

    def parts(message: dict[str, Any]) -> tuple[Part, ...]:
        if message["role"] == "tool":
            return (ToolResult(message["content"]),)
        text = (Text(message["content"]),) if message["content"] else ()
        calls = [call["function"] for call in message.get("tool_calls", ())]
        return text + tuple(ToolCall(c["name"], json.dumps(c["arguments"], ensure_ascii=False)) for c in calls)

    return Conversation(tuple(Message(message["role"], parts(message)) for message in messages), id="c")


def ids_of(case: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    rendering = render_prompt if case["arguments"]["add_generation_prompt"] else render
    return rendering(conversation(case["messages"]), tokenizer, 0).ids


def test_the_fixtures_are_of_all_the_conversations() -> None:
    """``tests/data/chat/render.py`` was run for every format since the conversations last changed."""
    asked = json.loads((DATA / "conversations.json").read_text())
    for name, fixture in FIXTURES.items():
        wanted = [(case["name"], case["messages"]) for case in asked if name in case.get("formats", [name])]
        assert [(case["name"], case["messages"]) for case in fixture["cases"]] == wanted


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_string_is_the_templates(name: str, case: dict[str, Any], tokenizers: dict[str, Tokenizer]) -> None:
    assert tokenizers[name].spell(ids_of(case, tokenizers[name])) == case["rendered"]


@pytest.mark.parametrize("name", FIXTURES)
def test_ids_are_those_of_transformers(name: str, folders: dict[str, Path], tokenizers: dict[str, Tokenizer]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folders[name] / "tokenizer.json"))
    for case in FIXTURES[name]["cases"]:
        expected = theirs(case["rendered"], add_special_tokens=False)["input_ids"]
        assert ids_of(case, tokenizers[name]) == expected, case["name"]


@pytest.mark.parametrize("name", FIXTURES)
def test_what_the_assistant_says_is_learnt_with_its_end(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    """The targets of each fixture, spelt out: the words of the answers, and nothing of the headers around them."""
    tokenizer, chat = tokenizers[name], CHAT_FORMATS[name]
    for case in FIXTURES[name]["cases"]:
        rendered = render(conversation(case["messages"]), tokenizer, 0)
        learnt = [token for token, target in zip(rendered.ids, rendered.loss_mask, strict=True) if target]
        said = ""
        for message in case["messages"]:
            if message["role"] == "assistant":
                calls = [call["function"] for call in message.get("tool_calls", ())]
                spoken = [message["content"].strip() if chat.trims else message["content"]] * bool(message["content"])
                for c in calls:
                    arguments = json.dumps(c["arguments"], ensure_ascii=False)
                    call = f'{{"name": "{c["name"]}", "{chat.call_key}": {arguments}}}'
                    spoken.append(call if name == "llama3" else f"<tool_call>\n{call}\n</tool_call>")
                said += "\n".join(spoken) + chat.end
        assert tokenizer.spell(learnt) == said, case["name"]


@pytest.mark.parametrize("name", FIXTURES)
def test_a_prompt_begins_the_conversation_it_leads_to(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    question = (system("Be brief."), user("What?"))
    for answer in ("Red.", "\n\nRed.", "  Red."):
        prompt = render_prompt(Conversation(question), tokenizers[name], 0).ids
        full = render(Conversation((*question, assistant(answer))), tokenizers[name], 0)
        assert full.ids[: len(prompt)] == prompt
        assert full.loss_mask.index(True) == len(prompt)


@given(name=st.sampled_from(sorted(VOCABULARIES)), data=st.data(), before=st.text(max_size=5))
@settings(deadline=None, max_examples=150)
def test_no_content_produces_a_control_token(
    name: str, data: st.DataObject, before: str, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[name]
    evil = before + data.draw(st.sampled_from(sorted(tokenizer.control))) + before
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode(evil))

    def build(text: str) -> list[int]:
        turns = (system(text), user(PICTURE, text), assistant(text), Message("tool", (ToolResult(text),)))
        return render(Conversation(turns), tokenizer, 2).ids

    assert [build(evil).count(n) for n in tokenizer.control_ids] == [build("x").count(n) for n in tokenizer.control_ids]


def test_text_that_spells_an_optional_token_is_text(tokenizers: dict[str, Tokenizer]) -> None:
    """Qwen2.5 has no token for tool results: the marks are plain text, as in its template, whoever writes them."""
    assert "<tool_response>" not in tokenizers["qwen2.5"].control
    asked = Conversation((Message("tool", (ToolResult("18"),)),))
    assert "<tool_response>\n18\n</tool_response>" in tokenizers["qwen2.5"].decode(
        render(asked, tokenizers["qwen2.5"], 0).ids
    )
    assert "<tool_response>" not in tokenizers["qwen3"].decode(render(asked, tokenizers["qwen3"], 0).ids)


@pytest.mark.parametrize(
    ("name", "token"), [("qwen2.5", "<|image_pad|>"), ("llama3", "<|image|>"), ("smollm2", "<|image|>")]
)
def test_a_picture_has_a_placeholder_in_every_vocabulary(
    name: str, token: str, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizer = tokenizers[name]
    assert tokenizer.control[token] == tokenizer.image
    last = len(DESCRIPTIONS[name]["model"]["vocab"]) + len(DESCRIPTIONS[name]["added_tokens"]) - 1
    assert (tokenizer.image == last + 1) == (token == "<|image|>")
    rendered = render(Conversation((user("  a ", PICTURE, " b "), assistant("c"))), tokenizer, 3)
    ((start, size),) = rendered.image_spans
    assert rendered.ids[start : start + size] == [tokenizer.image] * 3
    around = " a {} b " if name != "llama3" else "a {} b"
    expected = around.format(token * 3) if name == "llama3" else "  a " + token * 3 + " b "
    assert expected.lstrip() in tokenizer.spell(rendered.ids)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).control == tokenizer.control


@pytest.mark.parametrize("name", VOCABULARIES)
def test_what_is_saved_is_what_was_loaded(name: str, tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = tokenizers[name]
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.format, again.stops, again.document) == (tokenizer.format, tokenizer.stops, tokenizer.document)
    talk = conversation(FIXTURES[name]["cases"][4]["messages"])
    assert render(talk, again, 0) == render(talk, tokenizer, 0)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == tokenizer.format.end


def test_documents_and_stops(tokenizers: dict[str, Tokenizer]) -> None:
    llama, qwen = tokenizers["llama3"], tokenizers["qwen2.5"]
    ids = render(Document("text", "d"), llama, 0).ids
    assert (ids[0], ids[-1]) == (llama.control["<|begin_of_text|>"], llama.control["<|end_of_text|>"])
    assert llama.stops == {llama.control[t] for t in ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")}
    assert qwen.stops == {qwen.control["<|im_end|>"], qwen.control["<|endoftext|>"]}


def test_stops_come_from_the_files_and_stay(tmp_path: Path) -> None:
    folder = write(tmp_path / "hub", "qwen2.5", eos_token={"content": "<|fim_prefix|>"})
    known = {added["content"]: added["id"] for added in DESCRIPTIONS["qwen2.5"]["added_tokens"]}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [known["<|vision_start|>"]]}))
    tokenizer = Tokenizer.load(folder)
    expected = {known[t] for t in ("<|im_end|>", "<|endoftext|>", "<|fim_prefix|>", "<|vision_start|>")}
    assert tokenizer.stops == expected
    tokenizer.save(tmp_path / "ours")
    assert Tokenizer.load(tmp_path / "ours").stops == expected
    for wrong in (9999, [-1], "nothing", [1.5]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(DataError, match=r"end.? an answer"):
            Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("file", "key", "damaged"),
    [
        ("tokenizer_config.json", "ghostvis_stop_tokens", (5, True, "<|im_end|>", {"a": 1}, [["<|im_end|>"]], [True])),
        ("tokenizer_config.json", "eos_token", (5, True, ["<|im_end|>"], {"content": 5}, {"content": ["a"]})),
        ("generation_config.json", "eos_token_id", (True, {"a": 1}, [1.5], [[1]], [True])),
    ],
)
def test_stops_of_a_damaged_file(file: str, key: str, damaged: tuple[Any, ...], tmp_path: Path) -> None:
    folder = write(tmp_path, "qwen2.5")
    content = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    for wrong in damaged:
        (folder / file).write_text(json.dumps({**content, key: wrong}))
        with pytest.raises(DataError, match=rf"{file}: {key} says what ends an answer, and"):
            Tokenizer.load(folder)


def test_a_turn_of_llama_is_words_or_one_call(tokenizers: dict[str, Tokenizer]) -> None:
    calls = (ToolCall("a", "{}"), ToolCall("b", "{}"))
    for parts in (calls, (Text("x"), calls[0])):
        with pytest.raises(DataError, match=r"'s3'.*one tool call"):
            render(Conversation((user("x"), Message("assistant", parts)), id="s3"), tokenizers["llama3"], 0)


TELLING = {  # what tells a template from the others, in the spelling of the published files
    "qwen2.5": "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\\n' }}",
    "smollm2": "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}",
    "qwen3": "{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is false %}{{- '<think>' }}",
    "qwen3-instruct": "{{- '<|im_start|>user' }}{{- '\\n<tool_response>\\n' }}",
    "llama3": "<|start_header_id|>system<|end_header_id|> Cutting Knowledge Date: December 2023",
    "chatml": CHAT_TEMPLATE,
}


@pytest.mark.parametrize("name", TELLING)
def test_a_template_tells_its_format(name: str) -> None:
    assert detect({}, TELLING[name], (), "here") == CHAT_FORMATS[name]
    assert detect({"ghostvis_chat_format": name}, "{{ whatever }}", (), "here") == CHAT_FORMATS[name]


def chatml(prompt: str = "", head: str = "", thought: str = "", body: str = "m.content") -> str:
    """A template of our own that writes ChatML; the public ones' answers are in the fixtures."""
    begin = f"{{% if messages[0].role != 'system' %}}{{{{ '{head}' }}}}{{% endif %}}" if head else ""
    last = "loop.last and m.role == 'assistant'"
    opened = f"{{{{ '{thought}' }}}}" if thought else ""
    return (
        begin + "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        f"{{% if {last} %}}{opened}{{% endif %}}{{{{ {body} + '<|im_end|>\\n' }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n{prompt}' }}}}{{% endif %}}"
    )


def system_turn(prompt: str) -> str:
    return rf"<|im_start|>system\n{prompt}<|im_end|>\n"


THOUGHT = r"<think>\n\n</think>\n\n"
STANDINS = {  # templates of our own that say what the public ones do, tool calls aside
    "qwen2.5": chatml(head=system_turn(str(QWEN25.default_system))),
    "smollm2": chatml(head=system_turn(str(SMOLLM2.default_system))),
    "qwen3": "{# enable_thinking #}" + chatml(THOUGHT, thought=THOUGHT),
    "llama3": "{{ bos_token }}{% set s = messages[0].role == 'system' %}{{ '<|start_header_id|>system<|end_header_id|>"
    "\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' }}"
    "{{ messages[0].content | trim if s }}<|eot_id|>{% for m in messages[1 if s else 0:] %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
}


@pytest.mark.parametrize("name", STANDINS)
def test_a_template_that_says_the_same_is_accepted(name: str, tmp_path: Path) -> None:
    config = {"chat_template": STANDINS[name], "bos_token": {"content": "<|begin_of_text|>"}}
    tokenizer = Tokenizer.load(write(tmp_path, name, **config))
    assert tokenizer.format == CHAT_FORMATS[name]
    assert tokenizer.chat_template == STANDINS[name]


def test_the_system_prompt_of_another_chatml_template_is_taken_over(tmp_path: Path) -> None:
    template = chatml(head=system_turn(r"You\'re a \"fox\"."))
    folder = write(tmp_path / "hub", "smollm2", chat_template=[{"name": "default", "template": template}])
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.format == replace(CHATML, default_system='You\'re a "fox".')
    tokenizer.save(tmp_path / "ours")
    assert Tokenizer.load(tmp_path / "ours").format == tokenizer.format
    assert (tmp_path / "ours" / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("[INST] {{ messages[0].content }}", "no known format"),
        ("<|start_header_id|>{{ role }}", r"Llama 3\.0"),
        ("{{ '<|im_start|>assistant\\n<think>\\n' }}", "thinks first"),
        ("{{ '<|im_start|>system\\nIt is ' + day + '<|im_end|>' }}", "computes its system prompt"),
        (chatml(body="m.content | upper"), r"nearest is 'chatml', which writes .*Hi!.* where .*HI!"),
        ("{{ bos_token }}" + chatml(), "nearest is 'chatml'"),
        (chatml(THOUGHT), "thinks first"),
        ("{# enable_thinking #}" + chatml(THOUGHT), "nearest is 'qwen3'"),
        (chatml(body="raise_exception('only words')"), "cannot be run.*only words"),
        (chatml(body="messages.__class__.__mro__[1]"), "cannot be run: SecurityError"),
        (chatml() + "{% if %}", "cannot be run: TemplateSyntaxError"),
        (chatml() + "{% for i in range(10 ** 9) %}{% endfor %}", "cannot be run: OverflowError"),
    ],
)
def test_an_unknown_template_is_refused(template: str, message: str, tmp_path: Path) -> None:
    config = {"chat_template": template, "bos_token": "<|endoftext|>"}
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.load(write(tmp_path / "hub", "smollm2", **config))
    assert "hub" in caught.value.message
    if "computes" not in message:
        assert "ghostvis_chat_format" in caught.value.hint
        config["ghostvis_chat_format"] = "smollm2"  # what the hint says
        assert Tokenizer.load(write(tmp_path / "hub", "smollm2", **config)).format == SMOLLM2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 s"),
        ("{{ 10 ** (10 ** 10) }}", "more than 1 s|MemoryError"),
        ("{{ 'x' * 10 ** 10 }}", "MemoryError"),
        ("{{ '%10000000000d' | format(1) }}", "MemoryError"),
        (
            "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "more than 1 s|MemoryError",
        ),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "writes more than 1,000,000 characters"),
        ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}", "RecursionError|ended with"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory")
def test_a_hostile_template_ends(body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine would be out of time or memory, the template is refused, and this process notices nothing."""
    import resource

    program = tmp_path / "sandbox.py"
    program.write_text(Path(template_sandbox.__file__).read_text().replace("SECONDS = 5 ", "SECONDS = 1 "))
    monkeypatch.setattr(template_sandbox, "__file__", str(program))
    monkeypatch.setattr(template_sandbox, "SECONDS", 1)
    folder = write(tmp_path / "hub", "smollm2", chat_template=chatml() + body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=f"hub: the chat template cannot be run: .*({message})"):
        Tokenizer.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KB"


def test_a_template_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system limits nothing, the clock does."""
    monkeypatch.setattr("components.chat_templates.PATIENCE", 0.01)
    with pytest.raises(DataError, match="was not done after"):
        Tokenizer.load(write(tmp_path / "hub", "smollm2", chat_template=chatml() + " "))


def test_a_long_template_is_looked_through_once() -> None:
    starts = "<|im_start|>system\n" * 20_000
    began = time.process_time()
    assert detect({}, "<|im_end|>" + starts, CONTROL_TOKENS, "here") == CHATML
    assert time.process_time() - began < 5, "a minute where every start is tried to the end"
    with_prompt = f"<|im_start|>system\nBe kind.<|im_end|>{starts}"
    assert detect({}, with_prompt, CONTROL_TOKENS, "here").default_system == "Be kind."


def test_the_words_of_a_refusal_are_few(tmp_path: Path) -> None:
    template = chatml() + "{{ 'x' * 100000 }}"
    with pytest.raises(DataError, match="nearest is 'chatml'") as caught:
        Tokenizer.load(write(tmp_path / "hub", "smollm2", chat_template=template))
    assert len(caught.value.message) < 2000


def test_without_a_template_the_tokens_tell() -> None:
    assert detect({}, "", LLAMA_TOKENS, "here") == LLAMA3
    assert detect({}, "", CONTROL_TOKENS, "here") == CHATML
    assert detect({}, "", [*QWEN_TOKENS, "<think>"], "here") == QWEN3
    with pytest.raises(DataError, match="no chat template"):
        detect({}, "", ["<|endoftext|>"], "here")


def test_saved_names_are_checked() -> None:
    assert from_saved("qwen2.5", "here") is QWEN25
    assert from_saved({"name": "smollm2", "default_system": None}, "here") == replace(SMOLLM2, default_system=None)
    for value in ("qwen2", {"name": "chatml", "end": "x"}, 3, {"name": "chatml", "default_system": 3}, {}):
        with pytest.raises(DataError, match="ghostvis_chat_format"):
            from_saved(value, "here")


def test_a_vocabulary_without_the_end_of_a_turn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no token .*<\|eot_id\|>.*'llama3'"):
        Tokenizer.load(write(tmp_path / "hub", "smollm2", ghostvis_chat_format="llama3"))


def split_files(folder: Path, description: dict[str, Any], **config: Any) -> Path:
    """The same tokenizer as ``vocab.json``, ``merges.txt`` and a table of added tokens."""
    folder.mkdir(exist_ok=True)
    model = description["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_vocab_and_merges_are_the_same_tokenizer(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    added = {str(token["id"]): token for token in DESCRIPTIONS["qwen3"]["added_tokens"]}
    config = {"tokenizer_class": "Qwen2Tokenizer", "ghostvis_chat_format": "qwen3"}
    folder = split_files(tmp_path / "a", DESCRIPTIONS["qwen3"], **config, added_tokens_decoder=added)
    other = split_files(tmp_path / "b", DESCRIPTIONS["qwen3"], **config)
    (other / "added_tokens.json").write_text(json.dumps({token["content"]: token["id"] for token in added.values()}))
    for tokenizer in map(Tokenizer.load, (folder, other)):
        assert tokenizer.control == tokenizers["qwen3"].control
        for case in FIXTURES["qwen3"]["cases"]:
            assert ids_of(case, tokenizer) == ids_of(case, tokenizers["qwen3"])
        assert tokenizer.encode("e\u0301") == tokenizer.encode("é")  # NFC


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("tokenizer.json", lambda text: text[: len(text) // 2], "is not a tokenizer"),
        ("tokenizer.json", lambda text: "[]", "is not a tokenizer"),
        ("tokenizer.json", lambda text: text.replace('"<|im_end|>"', '"<|im_start|>"'), "cannot have id"),
        ("tokenizer.json", lambda text: text.replace('"!": 0', '"!": 90000'), "none has id 0"),
        ("tokenizer.json", lambda text: text.replace('"!": 0', '"!": 1'), "id 1 belongs to"),
        (
            "tokenizer.json",
            lambda text: text.replace('"merges": [[', '"merges": [["!", "\u0111"], ['),
            "is not a tokenizer",
        ),
        ("tokenizer.json", lambda text: text.replace('"BPE"', '"WordPiece"'), "is not a tokenizer"),
        ("tokenizer_config.json", lambda text: "{", "cannot be read as JSON"),
        ("tokenizer_config.json", lambda text: "[]", "no JSON object"),
        ("tokenizer_config.json", lambda text: '{"chat_template": 3}', "chat_template is not text"),
    ],
)
def test_damaged_files_are_named(file: str, damage: Any, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "hub", "smollm2", ghostvis_chat_format="smollm2")
    text = (folder / file).read_text()
    assert damage(text) != text
    (folder / file).write_text(damage(text))
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.load(folder)
    assert str(folder) in caught.value.message


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("merges.txt", "#version: 0.2\na b c\n", "line 2.*no pair"),
        ("merges.txt", "h zzz\n", "not a tokenizer"),
        ("vocab.json", '{"a": 0, "b": 2}', "none has id 1"),
        ("vocab.json", '{"a": 0, "b": 0}', "belongs to"),
        ("vocab.json", "{", "JSON"),
        ("added_tokens.json", '{"<|im_end|>": "x"}', "added tokens"),
        ("added_tokens.json", '{"<|im_end|>": 5000}', "none has id"),
    ],
)
def test_damaged_vocabularies_are_named(file: str, text: str, message: str, tmp_path: Path) -> None:
    folder = split_files(tmp_path / "hub", DESCRIPTIONS["smollm2"])
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.load(folder)
    assert str(folder) in caught.value.message


def test_a_foreign_merge_that_spells_a_control_token_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "hub", "smollm2", ghostvis_chat_format="smollm2")
    description = json.loads((folder / "tokenizer.json").read_text())
    word = next(token for token in description["model"]["vocab"] if len(token) > 3)
    description["added_tokens"].append(
        {**description["added_tokens"][0], "content": word, "id": description["model"]["vocab"][word]}
    )
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="into its control id"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("spoil", [("add_prefix_space", True), ("normalizer", {"type": "Lowercase"})])
def test_a_tokenizer_that_changes_text_is_refused(spoil: tuple[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "hub", "smollm2", ghostvis_chat_format="smollm2")
    description = json.loads((folder / "tokenizer.json").read_text())
    if spoil[0] == "normalizer":
        description["normalizer"] = spoil[1]
    else:
        description["pre_tokenizer"]["pretokenizers"][1][spoil[0]] = spoil[1]
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="does not give back"):
        Tokenizer.load(folder)


def test_an_unknown_byte_never_becomes_a_control_token(tmp_path: Path) -> None:
    """Some vocabularies lack bytes, and name a control token as the one for unknown text."""
    folder = write(tmp_path / "hub", "smollm2", ghostvis_chat_format="smollm2")
    description = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = description["model"]["vocab"]
    missing, last = chr(256 + 4), max(vocabulary, key=vocabulary.__getitem__)
    vocabulary["<|endoftext|>"] = vocabulary.pop(missing)
    description["added_tokens"][0]["id"] = vocabulary["<|endoftext|>"]
    for number, added in enumerate(description["added_tokens"][1:], vocabulary[last] + 1):
        added["id"] = number
    description["model"]["unk_token"] = "<|endoftext|>"
    (folder / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("a\x04b")
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == "ab"


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        ("gpt-2", ["It", "'s", "Ġ1234½", "Ġ", "ĠX", "!?", "Ċ", "Ċ", "a"]),
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "½", "Ġ", "ĠX", "!?", "Ċ", "Ċ", "a"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "½", "Ġ", "ĠX", "!?ĊĊ", "a"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "4½", "Ġ", "ĠX", "!?ĊĊ", "a"]),
    ],
)
def test_text_is_split_as_the_vocabularies_were_learnt(kind: str, pieces: list[str]) -> None:
    backend = Backend.from_str(json.dumps(bpe_description({"a": 0}, [], [], kind)))
    assert backend.pre_tokenizer is not None
    found = [piece.replace("Â½", "½") for piece, _ in backend.pre_tokenizer.pre_tokenize_str("It's 1234½  X!?\n\na")]
    assert found == pieces


def test_the_formats_cost_no_torch() -> None:
    code = "import components.chat_formats, sys; sys.exit(bool({'torch', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
