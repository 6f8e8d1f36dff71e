"""Writes the fixtures beside it: what a public chat template makes of the conversations in ``conversations.json``.

    python tests/data/chat/render.py NAME TEMPLATE SOURCE

NAME is the chat format, TEMPLATE a file with the template (``chat_template.jinja``, or ``tokenizer_config.json``), and
SOURCE says in words whose it is. transformers renders; the arguments of the call are those that
``components/chat_formats.py`` names for the format. The templates are not kept here, only what they answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

ARGUMENTS = {"llama3": {"date_string": "26 Jul 2024"}}
PROMPT_ARGUMENTS = {"qwen3": {"enable_thinking": False}}
BEGIN = {"llama3": "<|begin_of_text|>"}


def main(name: str, template: str, source: str) -> None:
    text = Path(template).read_text(encoding="utf-8")
    if template.endswith(".json"):
        text = json.loads(text)["chat_template"]
    here = Path(__file__).parent
    cases = []
    for case in json.loads((here / "conversations.json").read_text(encoding="utf-8")):
        if name not in case.get("formats", [name]):
            continue
        prompt = case.get("prompt", False)
        arguments = {**ARGUMENTS.get(name, {}), **(PROMPT_ARGUMENTS.get(name, {}) if prompt else {})}
        (rendered,), _ = render_jinja_template(
            [case["messages"]],
            chat_template=text,
            add_generation_prompt=prompt,
            bos_token=BEGIN.get(name, ""),
            **arguments,
        )
        cases.append(
            {
                "name": case["name"],
                "messages": case["messages"],
                "arguments": {"add_generation_prompt": prompt, **arguments},
                "rendered": rendered,
            }
        )
    content = {
        "format": name,
        "source": source,
        "rendered_by": f"transformers {transformers.__version__}",
        "cases": cases,
    }
    (here / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
