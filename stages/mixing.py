"""What a recipe's mixture really yields: its first samples, counted by rows and by answer tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from components.shards.writer import count_tokens
from components.tokenizers import Tokenizer
from ghostvis_plugins.errors import DataError

from .order import Mixture, Order


@dataclass(slots=True)
class Share:
    """One source of a mixture. Shares are of 1; ``epochs`` is how often its samples were gone through."""

    name: str
    weight: float
    wanted: float
    size: int
    rows: int = 0
    tokens: int = 0
    bad: int = 0
    row_share: float = 0.0
    token_share: float = 0.0
    epochs: float = 0.0


def realised(
    datasets: Mapping[str, tuple[Any, float]], tokenizer: Tokenizer, *, seed: int, samples: int
) -> list[Share]:
    """Draw ``samples`` as training does, and count. Raises DataError for a data set that gives nothing usable."""
    mixture = Mixture({name: weight for name, (_, weight) in datasets.items()})
    shares = {
        name: Share(name, weight, mixture.shares.get(name, 0.0), len(dataset))
        for name, (dataset, weight) in datasets.items()
    }
    orders = {}
    for name, (dataset, _) in datasets.items():
        if not len(dataset):
            raise DataError(f"the data set '{name}' has no samples in this split")
        orders[name] = Order(seed, name, len(dataset))
    counted: dict[tuple[str, int], int | None] = {}
    while sum(share.rows for share in shares.values()) < samples:
        name = mixture.choose()
        share, index = shares[name], orders[name](mixture.advance(name))
        if (name, index) not in counted:
            counted[name, index] = _targets(datasets[name][0], index, name, tokenizer)
        targets = counted[name, index]
        if targets is None:
            share.bad += 1
            if share.bad >= 2 * share.size:
                raise DataError(f"no sample of the data set '{name}' can be used")
            continue
        mixture.account(name, targets)
        share.rows += 1
        share.tokens += targets
    rows, tokens = samples, sum(share.tokens for share in shares.values())
    for share in shares.values():
        share.row_share, share.token_share = share.rows / rows, share.tokens / max(tokens, 1)
        share.epochs = (share.rows + share.bad) / share.size
    return list(shares.values())


def _targets(dataset: Any, index: int, name: str, tokenizer: Tokenizer) -> int | None:
    """Answer tokens of a sample; None for one that training would put on its ledger."""
    try:
        sample = dataset[index]
        return count_tokens(replace(sample, id=sample.id or f"{name}[{index}]"), tokenizer)[1] or None
    except DataError:
        return None
