"""DINOv2 ViT-S/14 out of the ONNX file that a Python package carries.

The file is a saliency model; its tower kept the names of transformers, except that the exporter merged and transposed:
the weight of a linear layer is an anonymous constant, told by the name of the node that multiplies with it, and the
positions are two constants, the class token's and the patches'. The library ``onnx`` reads the file; nothing of it
is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghostvis_plugins.errors import DataError, UnavailableError

PREFIX = "backbone."
POSITIONS = PREFIX + "embeddings.position_embeddings"


class Dinov2Onnx:
    """The tower's tensors under the names of transformers (:class:`components.pretrained.tensors.TensorSource`)."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self._tensors = path, tensors

    @classmethod
    def open(cls, path: Path) -> Dinov2Onnx:
        """Raises UnavailableError without the library ``onnx``, DataError for a file that is not this model."""
        return cls(path, _named(path, _graph(path)))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str, out: Tensor) -> None:
        out.copy_(self._tensors[name])


def _graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise UnavailableError(
            f"{path.name} cannot be read without the library onnx", hint="pip install 'ghostvis[onnx]'"
        ) from error
    try:
        return onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's decoder, which has no class of its own for this
        raise DataError(f"{path} is damaged or no ONNX file: {error}") from error


def _named(path: Path, graph: Any) -> dict[str, Tensor]:
    """Constants of the graph by the names of transformers."""
    constants = {constant.name: constant for constant in graph.initializer}
    found = {name: _tensor(path, constant) for name, constant in constants.items() if name.startswith(PREFIX)}
    positions: dict[str, Tensor] = {}
    for node in graph.node:
        if not node.name.startswith("/backbone/"):
            continue
        anonymous = [name for name in node.input if name in constants and name not in found]
        if node.op_type == "MatMul" and anonymous:
            module = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            weight = _tensor(path, constants[anonymous[0]])
            found[f"{module}.weight"] = weight.T if weight.dim() == 2 else weight
        elif node.name.startswith("/backbone/embeddings/"):
            for name in anonymous:
                tensor = _tensor(path, constants[name])
                if tensor.dim() == 3 and tensor.is_floating_point():
                    positions["class" if tensor.shape[1] == 1 else "patches"] = tensor
    first, patches = positions.get("class"), positions.get("patches")
    if first is None or patches is None or first.shape[::2] != patches.shape[::2]:
        raise DataError(f"{path} holds no positions of a vision transformer")
    found[POSITIONS] = torch.cat((first, patches), dim=1)
    return found


def _tensor(path: Path, constant: Any) -> Tensor:
    from onnx import TensorProto, numpy_helper

    if constant.data_location == TensorProto.EXTERNAL:
        raise DataError(f"{path}: {constant.name} lies in another file; all weights must be in this one")
    try:
        return torch.from_numpy(numpy_helper.to_array(constant).copy())
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {constant.name} is damaged: {error}") from error
