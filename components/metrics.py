"""Figures of merit, shared by tasks and rewards: answer normalisation, exact match, choice, intervals.

Notable choices
---------------
* The normaliser behaves exactly like the answer processor of the VQA evaluation server, quirks included,
  because a score is only comparable when the quirks are: ``'s`` is split off, a period is removed unless a
  digit follows, only the first 32 periods go, and capitals are gone before the contractions are looked up.
* An interval resamples *clusters*, the pictures, not questions: the questions about one picture are right or
  wrong together, and treating them as independent would make every interval too narrow.
* numpy only. A reward or a task that imports this costs no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ghostvis_plugins.types import Score

# Punctuation that becomes a space, or nothing where it touches a space. Commas and question marks are also in
# the published list, but they have been deleted before it is applied.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the published code passes a regex flag where the count belongs; its value is 32
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = frozenset({"a", "an", "the"})

# The published table maps each of these words with one of its apostrophes missing to the word itself. It has gaps
# ("I'm" is listed with a capital and so never fires, "she'll" is not there), which are kept.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
'ow's'at y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _missing_one_apostrophe(word: str) -> Iterable[str]:
    return (word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'")


_REPAIR = {broken: word for word in _CONTRACTIONS.split() for broken in _missing_one_apostrophe(word)}
_REPAIR["somebody'd"] = "somebodyd"  # the wrong way round in the published table


def normalize_answer(text: str) -> str:
    """The canonical form of a short answer: ``"Two dogs."`` → ``"2 dogs"``.

    Source: the answer processor of the VQA evaluation server (EvalAI), as used for VQAv2, TextVQA and others.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = _strip_punctuation(text).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_REPAIR.get(word, word) for word in words if word not in _ARTICLES)


def _strip_punctuation(text: str) -> str:
    out = text
    for mark in _PUNCTUATION:
        # The test reads the text as it came, not as the marks before this one have left it.
        touches_space = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if touches_space else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


def exact_match(answer: str, target: str | Sequence[str]) -> float:
    """1.0 when the normalised answer equals the normalised target, or one of several; else 0.0.

    An empty answer never matches, even where a target normalises to nothing ("the").
    """
    given = normalize_answer(answer)
    targets = [target] if isinstance(target, str) else target
    return float(bool(given) and any(given == normalize_answer(each) for each in targets))


def choose(scores: Sequence[Score]) -> int:
    """Index of the continuation with the lowest mean negative log-likelihood per token.

    The mean, because a sum would favour short names. The first wins a tie, so whoever orders the choices must
    do it without regard to the right one. Raises ValueError when there is nothing to choose or a likelihood is NaN.
    """
    nll = [score.mean_nll for score in scores]
    if not nll or any(math.isnan(value) for value in nll):
        raise ValueError(f"cannot choose among likelihoods {nll}")
    return min(range(len(nll)), key=nll.__getitem__)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval. ``low`` and ``high`` are None where one cluster leaves nothing to resample."""

    mean: float
    low: float | None
    high: float | None
    n: int
    clusters: int

    def to_json(self) -> dict[str, float | int | None]:
        return asdict(self)


def bootstrap_ci(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of ``values`` with its 95 % percentile interval from a bootstrap over clusters.

    ``clusters[i]`` names the group ``values[i]`` belongs to (its picture); without it every value is its own.
    A resample draws as many clusters as there are, with replacement, and takes the mean over all their values,
    so clusters of different sizes keep their weight. Deterministic in ``seed`` and in the order of first appearance.
    Raises ValueError for no values at all.
    """
    if not len(values):
        raise ValueError("no values to average")
    x = np.asarray(values, dtype=np.float64)
    names = range(len(x)) if clusters is None else clusters
    number: dict[Hashable, int] = {}
    owner = np.array([number.setdefault(name, len(number)) for name in names])
    if len(owner) != len(x):
        raise ValueError(f"{len(x)} values but {len(owner)} cluster names")
    mean, k = float(x.mean()), len(number)
    if k < 2:
        return Estimate(mean, None, None, len(x), k)
    sums, sizes = np.bincount(owner, weights=x), np.bincount(owner).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = []
    chunk = max(1, 4_000_000 // k)  # at most 32 MB of counts at a time
    for start in range(0, resamples, chunk):
        counts = rng.multinomial(k, np.full(k, 1 / k), size=min(chunk, resamples - start))  # [R, k]
        means.append((counts @ sums) / (counts @ sizes))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Estimate(mean, float(low), float(high), len(x), k)


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every figure over ``rows``; a figure absent from a row counts only the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
