"""Randomness without state: counters hashed to 64 bits, and seeded permutations evaluated one element at a time.

A sequential generator would have to be replayed to reach step one million; these are functions of their arguments.
They are written out (splitmix64, a Feistel network) because the order of a run must outlive library versions.
"""

import hashlib

import numpy as np
from jaxtyping import Float64, UInt64

MASK = np.uint64(0xFFFFFFFFFFFFFFFF)
NUM_ROUNDS = 6


def key_from(*parts: object) -> int:
    """A 64-bit key from any printable values (a fingerprint, a seed, a purpose)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "little")


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit changes every output bit with probability near one half."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_u64(key: int, *counters: object) -> UInt64[np.ndarray, "..."]:
    """Hashes non-negative integers or arrays of them, broadcast together, under `key`."""
    state = np.full(1, key & int(MASK), np.uint64)
    with np.errstate(over="ignore"):
        for counter in counters:
            state = _mix((state ^ np.asarray(counter).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15))
    return state.reshape(np.broadcast_shapes(*(np.shape(counter) for counter in counters)))


def uniform(key: int, *counters: object) -> Float64[np.ndarray, "..."]:
    """Uniform in [0, 1), a function of `key` and the counters."""
    return np.asarray((hash_u64(key, *counters) >> np.uint64(11)) * 2.0**-53)


def shuffle(key: int, length: int) -> np.ndarray:
    """A permutation of `range(length)` (int64), for lengths that fit in memory."""
    return np.argsort(hash_u64(key, np.arange(length)), kind="stable")


def permute(key: int, stream: object, sizes: object, values: object) -> np.ndarray:
    """Elementwise seeded permutations: `values[i]` under the permutation of `range(sizes[i])` named `stream[i]`.

    Arguments broadcast; 0 <= values < sizes. Returns int64. A Feistel network on the next power of four, walked
    until the value falls inside the range (fewer than four walks on average).
    """
    stream, sizes, values = np.broadcast_arrays(*(np.atleast_1d(np.asarray(a)) for a in (stream, sizes, values)))
    half_bits = np.maximum((np.ceil(np.log2(np.maximum(sizes, 2))).astype(np.uint64) + np.uint64(1)) // np.uint64(2), 1)
    result = values.astype(np.uint64)
    walking = np.arange(result.size)
    while walking.size:
        result[walking] = _feistel(key, stream[walking], half_bits[walking].astype(np.uint64), result[walking])
        walking = walking[result[walking] >= sizes[walking].astype(np.uint64)]
    return result.astype(np.int64)


def _feistel(key: int, stream: np.ndarray, half_bits: np.ndarray, values: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for number in range(NUM_ROUNDS):
        left, right = right, left ^ (hash_u64(key, stream, number, right) & mask)
    return (left << half_bits) | right
