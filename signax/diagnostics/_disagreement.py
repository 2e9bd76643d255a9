r"""Do the workers disagree for good, or only by the noise of their mini-batches?

One-way analysis of variance over the workers' mean gradients, summed over coordinates. With T draws
of each of M workers, b_n the mean of worker n's and b the mean of all,

$$ \text{between} = \frac{1}{M-1} \sum_n \lVert b_n - b \rVert^2 - \frac{\lVert \sigma \rVert^2}{T},
   \qquad \text{within} = \lVert \sigma \rVert^2, $$

the first an unbiased estimate of how far the workers' true gradients lie apart, the second the
variance of one draw. Disagreement harms a vote if it is not small against the noise (which, like
the noise of Noisy signSGD, lets a vote see sizes) nor against the gradient itself.
"""

from typing import NamedTuple

import numpy as np


class Disagreement(NamedTuple):
    """Squared lengths, in the unit of the squared gradient; one value for each coordinate."""

    between: np.ndarray
    within: np.ndarray


def disagreement_of(means: np.ndarray, sigma: np.ndarray, draws: np.ndarray) -> Disagreement:
    """From the workers' mean gradients [M, d]; NaN `between` for one worker."""
    within = sigma**2
    if len(means) == 1:
        return Disagreement(np.full_like(within, np.nan), within)
    spread = np.var(means, axis=0, ddof=1)
    return Disagreement(spread - within * np.mean(1 / draws), within)
