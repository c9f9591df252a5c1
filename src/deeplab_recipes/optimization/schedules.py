"""Learning-rate factors as functions of tau, the fraction of the optimizer steps done (clipped to [0, 1])."""

import math


def polynomial(tau: float, *, power: float = 0.9, alpha_f: float = 0.0, steps: int | None = None) -> float:
    """alpha_f + (1 - alpha_f) (1 - tau)^power: the "poly" policy, ending at alpha_f.

    Args:
        tau: fraction of the steps done.
        power, alpha_f: of the formula.
        steps: of the whole run, if its last step is to be taken at alpha_f already, as in mmengine (whose tau is the
            step over one less than all steps); None: alpha_f is what would come after the last step.
    """
    if steps is not None:
        tau = tau * steps / max(steps - 1, 1)
    return alpha_f + (1 - alpha_f) * (1 - _clip(tau)) ** power


def cosine(tau: float, *, alpha_f: float = 0.0) -> float:
    """alpha_f + (1 - alpha_f) (1 + cos(pi tau)) / 2: half a cosine wave, ending at alpha_f."""
    return alpha_f + (1 - alpha_f) * (1 + math.cos(math.pi * _clip(tau))) / 2


def constant(tau: float) -> float:
    """1 at every tau."""
    return 1.0


def _clip(tau: float) -> float:
    return min(max(tau, 0.0), 1.0)
