"""Every random draw is named by where it happens: (seed, purpose, position), so a resumed run redraws it."""

import zlib

import numpy as np
import torch


def seed_of(seed: int, purpose: str, *position: int) -> int:
    """A 64-bit seed for one purpose at one position (clips seen, rank, ...).

    A purpose's positions have one length: SeedSequence does not tell a last 0 from none.
    """
    entropy = [seed, zlib.crc32(purpose.encode()), *position]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for that draw."""
    return torch.Generator().manual_seed(seed_of(seed, purpose, *position) & (2**63 - 1))
