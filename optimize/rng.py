"""Counter-based randomness: every array is a pure function of its key, so nothing has a state to save.

A key is any mix of integers and strings, e.g. `("train", seed, step)`; it is hashed to the 128-bit key of a Philox
generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import hashlib

import numpy as np

Key = int | str
_WORD = 2**64 - 1


def generator(*key: Key) -> np.random.Generator:
    """The Philox generator of `key`."""
    return np.random.Generator(np.random.Philox(key=_hashed(*key)))


def _hashed(*key: Key) -> int:
    """128 bits of a key."""
    text = "\x1f".join(f"{type(k).__name__}:{k}" for k in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest())


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
    drawn = np.empty((len(seeds), *shape), np.float32)
    bits = np.random.Philox(key=0)  # one generator is keyed anew for each sample, which is faster than a new one
    normals, state = np.random.Generator(bits), bits.state
    for seed, sample in zip(seeds, drawn):
        key = _hashed("sample", int(seed))
        state["state"]["key"] = np.array([key & _WORD, key >> 64], np.uint64)
        bits.state = state
        normals.standard_normal(dtype=np.float32, out=sample)
    return drawn
