"""What a search chooses from where a command line says nothing, by the format of the data."""

from __future__ import annotations

#: How far from its default a learning rate may be, down and up.
RATE_RANGE = 0.4, 8.0
#: Values to choose from, as they are typed, by the format of the training rows.
OF_FORMAT = {
    "A": {"loss.cosine_tau": "tag(log,interval(3,40))", "loss.angle_w": "0,1", "loss.ibn_w": "0,1,20"},
    "B": {"loss.ibn_tau": "tag(log,interval(5,80))", "loss.angle_w": "0,1"},
    "C": {"loss.ibn_tau": "tag(log,interval(5,80))"},
}
#: Every setting that may be suggested.
SUGGESTED = frozenset({"train.learning_rate"}).union(*OF_FORMAT.values())


def suggested_values(learning_rate: float, data_format: str) -> dict[str, str]:
    """Return what to choose from, by setting, as on a command line.

    Args:
        learning_rate: that of a run without the search.
        data_format: of the training rows; "auto" for sources with batches of their own.

    """
    low, high = (learning_rate * factor for factor in RATE_RANGE)
    return {"train.learning_rate": f"tag(log,interval({low:g},{high:g}))"} | OF_FORMAT.get(data_format, {})
