"""``report.md`` of a training run: what was trained, how it went, what the model says now. Relative paths only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.images import decode
from components.trackers.jsonl import read_metrics
from ghostvis_plugins.errors import MissingError
from ghostvis_plugins.types import Conversation, Generation, Message

from .context import RunContext
from .curves import draw
from .meter import PHASES
from .optim import Row, format_table
from .progress import clock, si
from .provenance import provenance, table
from .shares import Share, markdown_shares

ANSWER = Generation(max_new_tokens=32)


def write_report(
    context: RunContext,
    rows: Sequence[Row],
    facts: Mapping[str, Any],
    shares: Sequence[Share],
    samples: Sequence[Conversation],
    engine: Any | None,
) -> Path:
    """Write the report of a finished run; ``samples`` are answered by ``engine`` when there is one."""
    run_dir = context.run_dir
    metrics = read_metrics(run_dir)
    stage = context.values["stage"]["name"]
    sections = [f"# {run_dir.name}: {stage}", table({**_figures(metrics), **facts})]
    sections += ["## What trained", f"```\n{format_table(rows)}\n```"]
    sections += ["## What it was taught", markdown_shares(shares)]
    if metrics:
        validated = [(row["step"], row["val_loss"]) for row in metrics if "val_loss" in row]
        training = [(row["step"], row["loss"]) for row in metrics]
        draw({"training": training}, run_dir / "loss.png", title=stage, dotted={"validation": validated})
        sections += ["## Loss", "![loss over steps](loss.png)"]
    if samples and engine is not None:
        sections += ["## Held-out samples", _answered(samples, engine, run_dir)]
    sections += ["## Where these figures come from", table(dict(_provenance(context)))]
    path = run_dir / "report.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def find_engine(context: RunContext, model: Any, tokenizer: Any) -> Any | None:
    """The run's engine on its model, or None when nothing provides one."""
    table = context.table("engine", "native")
    try:
        return context.build("engine", table, model=model, tokenizer=tokenizer)
    except MissingError:
        return None


def _figures(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not metrics:
        return {}
    last = metrics[-1]
    validated = [row for row in metrics if "val_loss" in row]
    seconds = sum(row["seconds"] for row in metrics)
    tokens = sum(row["tokens"] for row in metrics)
    figures: dict[str, Any] = {"steps": last["step"], "training loss": f"{last['loss']:.4f}"}
    if validated:
        best = min(validated, key=lambda row: row["val_loss"])
        figures["validation loss"] = (
            f"{validated[-1]['val_loss']:.4f} (best {best['val_loss']:.4f}, step {best['step']})"
        )
        if "val_bpb" in validated[-1]:
            figures["validation bits per byte"] = f"{validated[-1]['val_bpb']:.4f}"
        for key, value in validated[-1].items():
            if key.startswith("val_accuracy"):
                figures[key.replace("val_accuracy", "validation token accuracy").replace("/", ", ")] = f"{value:.1%}"
    figures |= {
        "tokens": f"{tokens:,} ({sum(row['target_tokens'] for row in metrics):,} targets)",
        "samples": f"{sum(row['samples'] for row in metrics):,}",
        "pictures": f"{sum(row['images'] for row in metrics):,}",
        "row fill": f"{sum(row['fill'] for row in metrics) / len(metrics):.1%}",
        "left out": f"{sum(row['skipped'] for row in metrics)} too long, "
        f"{sum(row['cropped'] for row in metrics)} cropped, {last['bad_samples']} unusable",
        **({"steps left out": _incidents(last)} if last.get("skipped_steps") else {}),
        "training time": f"{clock(seconds)} ({tokens / max(seconds, 1e-9):,.0f} tokens/s)",
        **_cost(metrics, seconds),
        "data hash": f"`{last['data_hash'][:16]}`",
    }
    return figures


def _incidents(last: Mapping[str, Any]) -> str:
    """Steps without a finite loss, which ``incidents.jsonl`` names with their samples."""
    went_back = f", went back {last['rollbacks']} times" if last.get("rollbacks") else ""
    return f"{last['skipped_steps']} with a loss or gradient that is no number{went_back} (incidents.jsonl)"


def _cost(metrics: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, str]:
    """Operations, where the time went, memory and energy. A step's time has neither validation nor checkpoints."""
    images, flops = sum(row["images"] for row in metrics), sum(row.get("flops", 0) for row in metrics)
    rate = f"{si(flops / max(seconds, 1e-9))}FLOP/s"
    if all("mfu" in row for row in metrics):
        rate += f", MFU {sum(row['mfu'] * row['seconds'] for row in metrics) / seconds:.1%} of the bfloat16 peak"
    spent = {name: sum(row[f"time_{name}"] for row in metrics) for name in (*PHASES, "other")}
    cost = {
        **({"computed": f"{si(flops)}FLOP ({rate})"} if flops else {}),
        "time goes to": ", ".join(f"{name} {part / max(seconds, 1e-9):.0%}" for name, part in spent.items()),
    }
    if images:
        cost["pictures per second"] = f"{images / max(seconds, 1e-9):,.1f}"
    if memory := max(row.get("memory_bytes", 0) for row in metrics):
        cost["peak memory"] = f"{memory / 2**30:.2f} GiB"
    if joules := sum(row.get("energy_joules", 0.0) for row in metrics):
        cost["energy"] = f"{joules / 3.6e6:.3g} kWh ({joules / max(seconds, 1e-9):.0f} W)"
    return cost


def _provenance(context: RunContext) -> dict[str, str]:
    from .rundir import resolved_of

    argv = resolved_of(context.run_dir, {}).get("argv") or []
    return provenance(argv, context.dist.device, context.dist.world)


def _answered(samples: Sequence[Conversation], engine: Any, run_dir: Path) -> str:
    """Each sample's last question with its picture, the true answer and the model's."""
    blocks = []
    prompts = [Conversation(_before_answer(sample), id=sample.id) for sample in samples]
    for number, (sample, prompt, completion) in enumerate(
        zip(samples, prompts, engine.generate(prompts, ANSWER), strict=True)
    ):
        lines = []
        for index, image in enumerate(prompt.images):
            name = f"samples/{number}_{index}.png"
            (run_dir / "samples").mkdir(exist_ok=True)
            picture = decode(image)
            picture.thumbnail((256, 256))
            picture.save(run_dir / name)
            lines.append(f"![{sample.id}]({name})")
        answer = sample.messages[len(prompt.messages)].text
        row = {"question": prompt.messages[-1].text, "answer": answer, "model": completion.text, "id": sample.id}
        lines += [table({**row, **_credit(sample)})]
        blocks.append("\n\n".join(lines))
    return "\n\n".join(blocks)


def _credit(sample: Conversation) -> dict[str, str]:
    """Whose picture it is and under which licence, where the data set says so."""
    said = [str(sample.metadata.get(key) or "") for key in ("author", "attribution", "license")]
    return {"picture": "; ".join(filter(None, said))} if any(said) else {}


def _before_answer(sample: Conversation) -> tuple[Message, ...]:
    last = max(index for index, message in enumerate(sample.messages) if message.role == "assistant")
    return sample.messages[:last]
