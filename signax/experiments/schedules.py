"""Learning rates by name."""

from collections.abc import Callable

import optax

from signax.experiments.errors import unknown_name

_WARM_UP = 0.1  # of the steps

SCHEDULES: dict[str, Callable[[float, int], optax.ScalarOrSchedule]] = {
    "constant": lambda peak, num_steps: peak,
    "cosine": lambda peak, num_steps: optax.cosine_decay_schedule(peak, num_steps),
    "linear": lambda peak, num_steps: optax.linear_schedule(peak, 0.0, num_steps),
    # Up from a tenth of the peak, then as "cosine".
    "warmup": lambda peak, num_steps: optax.warmup_cosine_decay_schedule(
        peak / 10, peak, max(1, round(_WARM_UP * num_steps)), max(2, num_steps)
    ),
}


def make_schedule(name: str, peak: float, num_steps: int) -> optax.ScalarOrSchedule:
    """The schedule of this name over so many steps."""
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    return SCHEDULES[name](peak, num_steps)
