"""Learning-rate factors as functions of tau, the fraction of the optimizer steps done (clipped to [0, 1])."""

import math


def polynomial(tau: float, *, power: float = 0.9, alpha_f: float = 0.0) -> float:
    """alpha_f + (1 - alpha_f) (1 - tau)^power: the "poly" policy, ending at alpha_f."""
    return alpha_f + (1 - alpha_f) * (1 - _clip(tau)) ** power


def cosine(tau: float, *, alpha_f: float = 0.0) -> float:
    """alpha_f + (1 - alpha_f) (1 + cos(pi tau)) / 2: half a cosine wave, ending at alpha_f."""
    return alpha_f + (1 - alpha_f) * (1 + math.cos(math.pi * _clip(tau))) / 2


def constant(tau: float) -> float:
    """1 at every tau."""
    return 1.0


def _clip(tau: float) -> float:
    return min(max(tau, 0.0), 1.0)
