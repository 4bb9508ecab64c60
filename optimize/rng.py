"""Counter-based randomness: every array is a pure function of its key, so nothing has a state to save.

A key is any mix of integers and strings, e.g. `("train", seed, step)`; it is hashed to the 128-bit key of a Philox
generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import hashlib

import numpy as np

Key = int | str


def generator(*key: Key) -> np.random.Generator:
    """The Philox generator of `key`."""
    text = "\x1f".join(f"{type(k).__name__}:{k}" for k in key)
    return np.random.Generator(
        np.random.Philox(key=int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest()))
    )


def normal(shape: tuple[int, ...], *key: Key) -> np.ndarray:
    """Standard normal float32 array of `shape`."""
    return generator(*key).standard_normal(shape, dtype=np.float32)


def uniform(shape: tuple[int, ...], *key: Key) -> np.ndarray:
    """Uniform float64 array of `shape` in [0, 1)."""
    return generator(*key).random(shape)


def integers(low: int, high: int, shape: tuple[int, ...], *key: Key) -> np.ndarray:
    """int64 array of `shape` in [low, high)."""
    return generator(*key).integers(low, high, shape)


def noise(seeds: list[int] | range | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Initial noise (B, *shape), float32; sample `i` depends on `seeds[i]` alone, so batches may be cut anywhere."""
    return np.stack([normal(shape, "sample", int(s)) for s in seeds])
