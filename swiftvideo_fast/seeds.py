"""Random seeds from (seed, purpose, position): a draw depends on these alone, so a resumed run repeats it."""

import zlib

import numpy as np
import torch


def seed_of(seed: int, purpose: str, *position: int) -> int:
    """Returns a 64-bit seed for a purpose and a position (clips seen, rank, ...).

    All positions of a purpose must have one length: SeedSequence ignores a trailing 0.
    """
    entropy = [seed, zlib.crc32(purpose.encode()), *position]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """Returns a CPU generator seeded by seed_of."""
    return torch.Generator().manual_seed(seed_of(seed, purpose, *position) & (2**63 - 1))
