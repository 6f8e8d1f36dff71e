"""Each rank's own tensors in a safetensors file, through torch.distributed.checkpoint, which decides who writes what.

Its own writer makes one string of bytes of all tensors before it writes them, and holds the interpreter's lock
meanwhile (2 s for a GB on a small machine): a training that goes on would stand still. ``safetensors.torch.save_file``
copies nothing and leaves the lock. The file is the same: ``HuggingFaceStorageReader`` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter, SavePlan, SavePlanner
from torch.futures import Future

Write = Callable[[Mapping[str, Tensor], Path, dict[str, str]], None]


class ShardFile(HuggingFaceStorageWriter):
    """Lets ``write`` put this rank's tensors into ``path``: no file where it has none."""

    def __init__(self, path: Path, write: Write) -> None:
        super().__init__(str(path.parent), save_distributed=True)
        self.file, self._write = path, write

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[Any]]:
        tensors, offsets = {}, {}
        for item in plan.items:
            assert item.tensor_data is not None
            tensors[item.index.fqn] = cast(Tensor, planner.resolve_data(item))
            offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        if tensors:
            # One entry is all that the reader needs: of several, safetensors varies the order, and the file.
            self._write(tensors, self.file, {"DCP_SHARDING_INFO": json.dumps(offsets, sort_keys=True)})
        done: Future[list[Any]] = Future()
        done.set_result([])  # what a file with an index would be made of
        return done
