"""config.pbtxt: Triton's model configuration as protobuf text, from plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from optimize.configs import Config

TYPES = {  # ONNX's name of an element type -> Triton's
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
    "BFLOAT16": "TYPE_BF16",
    "DOUBLE": "TYPE_FP64",
    "INT64": "TYPE_INT64",
    "INT32": "TYPE_INT32",
    "UINT8": "TYPE_UINT8",
    "INT8": "TYPE_INT8",
    "BOOL": "TYPE_BOOL",
}


class Word(str):
    """An enum's value: written without quotes."""


class Port(Config):
    """An input or output: name, Triton's type, dims with -1 where any size is taken, the batch among them."""

    name: str
    type: str
    dims: tuple[int, ...]
    optional: bool = False
    first: str = ""  # the file's name of a free first dim: inputs that all samples share have another than the batch's

    def fields(self, batched: bool) -> dict[str, Any]:
        """The message ModelInput or ModelOutput.

        A batched model's dims leave the batch out. Triton allows none to be left: such a port is [1] to the client and
        reshaped to nothing for the model.
        """
        dims = self.dims[1:] if batched else self.dims
        made: dict[str, Any] = {"name": self.name, "data_type": Word(self.type), "dims": list(dims or (1,))}
        if not dims:
            made["reshape"] = {"shape": []}
        return made | ({"optional": True} if self.optional else {})


def batched(ports: Sequence[Port]) -> bool:
    """Whether the first dimension of every port is free and the same, so that requests can be stacked along it."""
    free = all(port.dims and port.dims[0] == -1 for port in ports)
    return free and len({port.first for port in ports}) == 1


def text(fields: dict[str, Any], indent: str = "") -> str:
    """Protobuf text of a message given as {field: value}: a list of messages repeats the field, a list of scalars is
    written in brackets, a dict is a message."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [_message(name, each, indent) for each in value]
        elif isinstance(value, dict):
            lines.append(_message(name, value, indent))
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}")
    return "\n".join(lines)


def _message(name: str, value: dict[str, Any], indent: str) -> str:
    inner = text(value, indent + "  ")
    return f"{indent}{name} {{\n{inner}\n{indent}}}" if inner else f"{indent}{name} {{ }}"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_scalar(v) for v in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Word) or not isinstance(value, str):
        return str(value)
    return json.dumps(value)


def parameters(values: dict[str, str]) -> list[dict[str, Any]]:
    """The map `parameters`, entry by entry."""
    return [{"key": k, "value": {"string_value": v}} for k, v in values.items()]
