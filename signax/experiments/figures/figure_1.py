"""Figure 1: level sets of the mixed norm (7), l1 far from the origin and l2 near it.

Left open by the paper, chosen here:
  scales      |g| up to 0.1, 1, 10 and 100 at sigma = 1
"""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from signax import theory
from signax.experiments.figures.made import Claim, Made

_SCALES = (0.1, 1.0, 10.0, 100.0)


def make(is_quick: bool) -> Made:
    """Draws the contours of g -> sum g_i^2 / (|g_i| + sqrt(3)) at four scales."""
    num_points = 41 if is_quick else 201
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    rows, shapes = [], []
    for ax, scale in zip(figure.subplots(1, len(_SCALES)), _SCALES, strict=True):
        axis = np.linspace(-scale, scale, num_points)
        g = np.stack(np.meshgrid(axis, axis), axis=-1)
        norm = np.asarray(theory.l12_norm(jnp.asarray(g, jnp.float32), 1.0))
        ax.contour(axis, axis, norm, levels=10, cmap="viridis", linewidths=1)
        ax.set_aspect("equal")
        ax.set_title(f"|g| up to {scale:g}")
        ax.set_xlabel("$g_1$ [$\\sigma$]")
        rows.append(np.concatenate([g, norm[..., None]], axis=-1).reshape(-1, 3))
        shapes.append(_reach_of_diagonal(scale))
    figure.axes[0].set_ylabel("$g_2$ [$\\sigma$]")
    g1, g2, norm = np.concatenate(rows).T
    scale = np.repeat(_SCALES, num_points**2)
    columns = {"scale": scale, "g1": g1, "g2": g2, "l12_norm": norm}
    measured = ", ".join(f"{r:.3f} at {s:g}" for s, r in zip(_SCALES, shapes, strict=True))
    claim = Claim(
        "level sets go from the circle of l2 near the origin to the diamond of l1 far away (how far"
        " a level set through (r, 0) reaches along the diagonal: circle 1, diamond 0.707; within"
        " 0.02 at the ends)",
        measured,
        abs(shapes[0] - 1) < 0.02 and abs(shapes[-1] - 0.5**0.5) < 0.02,
    )
    return Made(figure, {"": columns}, f"{num_points} x {num_points} points each", (claim,))


def _reach_of_diagonal(r: float) -> float:
    """t / r where (t, t) / sqrt(2) has the norm of (r, 0), by bisection."""
    level = float(theory.l12_norm(jnp.array([r, 0.0]), 1.0))
    low, high = 0.0, 2.0 * r
    for _ in range(40):
        middle = (low + high) / 2
        is_inside = float(theory.l12_norm(jnp.full(2, middle / 2**0.5), 1.0)) < level
        low, high = (middle, high) if is_inside else (low, middle)
    return low / r
