"""What a search chooses from where a command line says nothing, by what the training rows are."""

from __future__ import annotations

from angle.config import DataFormatConfig

#: How far from its default a learning rate may be, down and up.
RATE_RANGE = 0.4, 8.0
#: Values to choose from, as they are typed, by the format of the training rows, and for graded labels.
GRADED = {"loss.cosine_tau": "tag(log,interval(2,20))", "loss.angle_w": "0,1", "train.layer_decay": "1,0.9"}
OF_FORMAT = {
    "A": {"loss.cosine_tau": "tag(log,interval(3,40))", "loss.angle_w": "0,1", "loss.ibn_w": "0,1,20"},
    "B": {"loss.ibn_tau": "tag(log,interval(5,80))", "loss.angle_w": "0,1,20", "loss.reverse_w": "0,10"},
    "C": {"loss.ibn_tau": "tag(log,interval(5,80))", "loss.reverse_w": "0,20"},
}
#: Every setting that may be suggested.
SUGGESTED = frozenset({"train.learning_rate"}).union(GRADED, *OF_FORMAT.values())


def suggested_values(learning_rate: float, data_format: DataFormatConfig) -> dict[str, str]:
    """Return what to choose from, by setting, as on a command line.

    Args:
        learning_rate: that of a run without the search.
        data_format: what the training rows are; "auto" for sources with batches of their own.

    """
    low, high = (learning_rate * factor for factor in RATE_RANGE)
    of_rows = GRADED if data_format.graded else OF_FORMAT.get(data_format.name, {})
    return {"train.learning_rate": f"tag(log,interval({low:g},{high:g}))"} | of_rows
