"""The number by which a model is judged: how it is called, written, drawn and compared."""

from typing import NamedTuple


class Metric(NamedTuple):
    """One kind of score. Rows and results hold it plain; people see it times `scale`."""

    name: str  # of the training batches; of the test set it is "test_" + name
    words: str
    unit: str
    scale: float
    decimals: int
    best: float  # as shown: what no model can exceed
    more_is_better: bool

    @property
    def label(self) -> str:
        """For an axis or the head of a column."""
        return f"{self.words} [{self.unit}]" if self.unit else self.words

    def shown(self, value: float) -> str:
        """With its unit, as in `97.41%`."""
        return f"{self.number(value)}{self.unit}"

    def number(self, value: float) -> str:
        """Without its unit."""
        return f"{self.scale * value:.{self.decimals}f}"

    def reaches(self, value: float, target: float) -> bool:
        """Whether `value` is as good as `target`, which is written as people see it."""
        return self.scale * value >= target if self.more_is_better else self.scale * value <= target


ACCURACY = Metric("accuracy", "accuracy", "%", 100.0, 2, 100.0, more_is_better=True)
BITS_PER_BYTE = Metric("bits_per_byte", "bits per byte", "", 1.0, 3, 0.0, more_is_better=False)
METRICS = {metric.name: metric for metric in (ACCURACY, BITS_PER_BYTE)}
