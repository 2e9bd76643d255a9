"""What the doctor examines."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from signax import diagnostics


class Subject(NamedTuple):
    """The arguments of `signax.diagnostics.examine`."""

    name: str
    loss_fn: Callable
    params: Any
    batches: Iterable
    num_workers: int
    reference: Any = None

    def examine(self, num_batches: int, bandwidth: float | None) -> diagnostics.Report:
        """Runs the examination."""
        return diagnostics.examine(
            self.loss_fn,
            self.params,
            self.batches,
            num_workers=self.num_workers,
            reference=self.reference,
            num_batches=num_batches,
            bandwidth=bandwidth,
        )
