"""What `compare` returns: tidy arrays, the best learning rates, a data frame, plots."""

from typing import Any, Literal, NamedTuple

import numpy as np

Against = Literal["step", "learning_rate", "num_workers"]


class Comparison(NamedTuple):
    """Each metric as one array [method, learning rate, M, seed, point, ...]; `result["loss"]`."""

    methods: tuple[str, ...]
    learning_rates: np.ndarray  # float64 [method, learning rate]
    num_workers: np.ndarray  # int [M]
    seeds: np.ndarray  # int [seed]
    steps: np.ndarray  # int [point]; the first is 0
    values: dict[str, np.ndarray]

    def __getitem__(self, metric: Any) -> Any:
        """The array of one metric."""
        if not isinstance(metric, str):
            return tuple(self)[metric]
        if metric not in self.values:
            raise KeyError(f"no metric {metric!r}. There is: {', '.join(sorted(self.values))}.")
        return self.values[metric]

    def final(self, metric: str = "loss") -> np.ndarray:
        """The metric after the last step: [method, learning rate, M, seed]."""
        return self[metric][:, :, :, :, -1]

    def best(self, metric: str = "loss", *, largest: bool = False) -> np.ndarray:
        """Which learning rate ends best, by the mean over the seeds: int [method, M].

        A run that diverged (NaN or infinity for any seed) is the worst there is.
        """
        mean = self.final(metric).mean(axis=-1)
        score = np.where(np.isfinite(mean), mean if largest else -mean, -np.inf)
        return score.argmax(axis=1)

    def at_best(self, metric: str, chosen: np.ndarray) -> np.ndarray:
        """The metric at the learning rates `chosen` by `best`: [method, M, seed, point, ...]."""
        values = self[metric]
        index = chosen.reshape(*chosen.shape[:1], 1, *chosen.shape[1:], *[1] * (values.ndim - 3))
        return np.take_along_axis(values, index, axis=1)[:, 0]

    def columns(self) -> dict[str, np.ndarray]:
        """One row for each run and point, as columns; metrics that are not scalar are left out."""
        scalars = {name: x for name, x in self.values.items() if x.ndim == 5}
        shape = self.values["loss"].shape
        method, rate, workers, seed, point = (i.ravel() for i in np.indices(shape))
        return {
            "method": np.array(self.methods)[method],
            "learning_rate": self.learning_rates[method, rate],
            "num_workers": self.num_workers[workers],
            "seed": self.seeds[seed],
            "step": self.steps[point],
            **{name: x.ravel() for name, x in scalars.items()},
        }

    def to_frame(self) -> Any:
        """`columns` as a `pandas.DataFrame`."""
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Comparison.to_frame needs pandas, which is not installed: pip install pandas."
                " Comparison.columns() is the same table as a dict of NumPy arrays.",
                name="pandas",
            ) from error
        return pandas.DataFrame(self.columns())

    def plot(
        self,
        metric: str = "loss",
        *,
        against: Against = "step",
        largest: bool = False,
        ax: Any = None,
    ) -> Any:
        """Draws the mean over the seeds; bars and bands are one sample standard deviation.

        Args:
          metric: Which one; a scalar.
          against: "step": the curve at each method's best learning rate. "learning_rate": the final
            value at each of them. "num_workers": the final value at the best one.
          largest: Whether the best learning rate has the largest final value (an accuracy).
          ax: Matplotlib axes to draw into; None makes a figure.

        Returns:
          The `matplotlib.figure.Figure`, with no window: in a notebook it shows itself, elsewhere
          `figure.savefig("compare.png")`.
        """
        from signax.experiments.comparison_plot import plot_comparison  # matplotlib loads slowly

        return plot_comparison(self, metric, against, largest, ax)
