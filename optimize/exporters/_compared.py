"""What cleaning a graph did is compared: the same inputs through it before and after, in ONNX Runtime without its own
optimizations. Graphs with larger weights would be in memory twice more; those are compared with torch alone, as all are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optimize.errors import GateFailed
from optimize.onnx.file import weight_bytes

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from torch import Tensor

log = logging.getLogger(__name__)
COMPARED_BYTES = 64 * 2**20  # of weights, at most
FARTHEST = 1e-5  # relative L2; merged constants and products of constants may be rounded once less
Feed = Mapping[str, "Tensor"]


@contextmanager
def same_results(graph: ir.Model, feeds: Callable[[], Iterable[Feed]]) -> Iterator[None]:
    """Inside the block the graph may change, what it computes may not: GateFailed where it did. Tried on the first and the
    last of the feeds, and on latents that are zero."""
    if weight_bytes(graph) > COMPARED_BYTES or not _has_runtime():
        yield
        return
    tried = _tried(list(feeds()))
    before = _results(graph, tried)
    yield
    after = _results(graph, tried) if before else []
    far = max(map(distance, before, after), default=float("inf") if len(after) < len(before) else 0.0)
    if far > FARTHEST:
        raise GateFailed(
            f"onnx: cleaning the graph changed what it computes by {far:.2g} (relative L2; at most {FARTHEST:g} is let "
            "through). Nothing was written. Try the other exporter: dynamo or torchscript."
        )


def distance(wanted: np.ndarray, found: np.ndarray) -> float:
    """|found - wanted| / |wanted| over what is finite; infinite where shapes differ, or what is not finite."""
    import numpy as np

    sound = np.isfinite(wanted)
    if wanted.shape != found.shape or not np.array_equal(sound, np.isfinite(found)):
        return float("inf")
    a, b = wanted[sound].astype(np.float64), found[sound].astype(np.float64)
    gap = float(np.linalg.norm(b - a))
    return gap / max(float(np.linalg.norm(a)), 1e-30) if gap else 0.0


def _has_runtime() -> bool:
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


def _tried(feeds: list[Feed]) -> list[Feed]:
    first, last = feeds[0], feeds[-1]
    latents = next(iter(first))
    return [first, *([last] if last is not first else []), {**first, latents: first[latents] * 0}]


def _results(graph: ir.Model, feeds: list[Feed]) -> list[np.ndarray]:
    """The output for every feed; nothing where ONNX Runtime does not take the graph."""
    import onnx_ir as ir
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4  # what fails is raised
    text = ir.to_proto(graph).SerializeToString()
    try:
        session: Any = onnxruntime.InferenceSession(text, settings, providers=["CPUExecutionProvider"])
        names = {i.name for i in session.get_inputs()}
        return [session.run(None, {k: v.numpy() for k, v in feed.items() if k in names})[0] for feed in feeds]
    except (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.NotImplemented,
        state.RuntimeException,
    ) as error:
        log.warning("onnx: ONNX Runtime does not take the graph, so cleaning it is not compared (%s)", str(error)[:200])
        return []
