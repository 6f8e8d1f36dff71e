"""Held-out captions that people wrote: which of four is the picture's, by mean likelihood per token.

The captions are of ``tuxpaint``, ``openclipart``, ``gimp_help`` and, on request, ``openmoji``; none of them, and no
variant of the thing it names, is in the training split of any of these sets. The wrong ones are captions of other
held-out pictures of the same set, or of all sets with ``mixed``. Tags are the sets. Chance is 25 %, and what style
alone gives shows in the controls: with a white picture, or another document's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.datasets.config import GimpHelp, OpenClipart, OpenMoji, TuxPaint
from components.datasets.splits import fraction
from components.tasks.answers import conversations
from components.tasks.config import CaptionSet, CaptionsTask
from components.tasks.ranking import RankingTask
from ghostvis_plugins.types import Conversation

if TYPE_CHECKING:
    from ghostvis_plugins.protocols import Dataset


def build(config: CaptionsTask) -> RankingTask:
    """One document per held-out picture. Raises what building the data sets raises."""
    samples: list[Conversation] = []
    asked: set[str] = set()
    for name in dict.fromkeys(config.sets):
        some = list(conversations(_dataset(name, config)))
        samples += some
        asked.update(sorted((sample.id for sample in some), key=fraction)[: config.limit])
    return RankingTask(
        "captions",
        "1",
        samples,
        distractors=config.distractors,
        seed=config.seed,
        group=lambda sample: sample.id.partition("/")[0],
        mixed=config.mixed,
        asked=lambda sample: sample.id in asked,
    )


def _dataset(name: CaptionSet, config: CaptionsTask) -> Dataset:
    from components.datasets import gimp_help, openclipart, openmoji, tuxpaint

    root = config.roots.get(name)
    if name == "tuxpaint":
        return tuxpaint.build(TuxPaint(root=root), split=config.split)
    if name == "openclipart":
        return openclipart.build(OpenClipart(root=root), split=config.split)
    if name == "gimp_help":
        return gimp_help.build(GimpHelp(root=root), split=config.split)
    return openmoji.build(OpenMoji(render_size=128, views=1), split=config.split)
