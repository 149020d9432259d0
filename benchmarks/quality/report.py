"""The report: what was chosen on validation rows, what it scores on test rows, and what that shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from angle.evaluation.comparison import LEVEL, Difference
from benchmarks.quality.bench import WARMUP_RATIO, Bench
from benchmarks.quality.figures import paired_difference
from benchmarks.quality.sides import EQUALITIES, OURS, Pair, Part, Side, comparisons_of
from benchmarks.throughput.jobs import ANGLE_EMB, OWN, SBERT

TITLES = {"A": "graded pairs (A)", "B": "triples (B)"}


@dataclass(frozen=True)
class Outcome:
    """What a side reached with the learning rate that was chosen for it."""

    side: Side
    learning_rate: float
    steps: int
    seconds: float
    """Mean of whole processes: libraries, model, rows, training, saving."""
    training_seconds: float
    """Mean of the time that its steps took."""
    valid: Mapping[int, float]
    """Spearman's correlation by seed."""
    tests: Mapping[str, Mapping[int, float]]
    """The same by test set."""
    is_at_edge: bool = False
    """Whether the learning rate is the lowest or highest of several, so that one outside may be better."""


def outcomes(bench: Bench, part: Part) -> list[Outcome]:
    """Return what each side of a part reached; all of its runs have ended.

    Validation scores alone choose; test scores are read of what they chose.
    """
    found = []
    for side in bench.sides(part):
        runs, rate = [run for run in bench.runs(part) if run.side == side], bench.rate(part, side)
        assert rate is not None
        rates = sorted({run.learning_rate for run in runs})
        chosen = {run.seed: bench.record(run) or {} for run in runs if run.learning_rate == rate}
        steps = runs[0].steps
        found.append(
            Outcome(
                side,
                rate,
                steps,
                mean(record["seconds"] for record in chosen.values()),
                mean(record["seconds_per_step"] for record in chosen.values()) * steps,
                {seed: record["valid"] for seed, record in chosen.items()},
                {
                    name: {seed: record["test"][name] for seed, record in chosen.items()}
                    for name in bench.options.test
                },
                is_at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
            )
        )  # fmt: skip
    return found


def section(bench: Bench, facts: Mapping[str, str]) -> str:
    """Return the report as a section in Markdown."""
    lines = [f"## Quality, {facts['date']}, {facts['hardware']}", ""]
    lines += ["```bash", facts["command"], "```", "", facts["versions"], ""]
    options = bench.options
    for part in bench.parts:
        unknown = [side.name for side in bench.sides(part) if bench.steps(part, side) is None]
        missing = len(bench.left([part]))
        lines += [f"### {EQUALITIES[part.equality]}: {TITLES[part.format]}", ""]
        if unknown or missing:
            runs = f"{missing} of {len(bench.runs(part))} runs"
            what = f"the time of a step of {', '.join(unknown)}" if unknown else runs
            lines += [f"Not measured yet: {what}.", ""]
            continue
        found = outcomes(bench, part)
        pairs = comparisons_of(part, options.peers, options.ours)
        lines += [table(found, list(options.test)), "", *(f"- {line}" for line in verdicts(found, pairs)), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes(bench))]) + "\n"


def table(found: Sequence[Outcome], tests: Sequence[str]) -> str:
    """Return a row for each side."""
    heads = ("side", "learning rate", "steps", "time of steps", "time of process", "validation", *tests)
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for one in found:
        rate = f"{one.learning_rate:g}{', the last of the grid' * one.is_at_edge}"
        times = (f"{one.training_seconds:,.0f} s", f"{one.seconds:,.0f} s")
        scores = (spread(one.valid), *(spread(one.tests[name]) for name in tests))
        lines.append(f"| {' | '.join((one.side.name, rate, f'{one.steps:,}', *times, *scores))} |")
    return "\n".join(lines)


def spread(scores: Mapping[int, float]) -> str:
    """Return the mean of a score times 100 with the standard deviation over the seeds."""
    values = [100 * score for score in scores.values()]
    return f"{mean(values):.2f}{f' ± {stdev(values):.2f}' if len(values) > 1 else ''}"


def verdicts(found: Sequence[Outcome], pairs: Sequence[Pair]) -> list[str]:
    """Return a sentence for each pair and test set: that one is better only if the interval leaves out 0."""
    by_side = {one.side.name: one for one in found}
    lines = []
    for pair in pairs:
        own, peer = by_side[pair.own.name], by_side[pair.peer.name]
        for name in own.tests:
            difference = paired_difference(own.tests[name], peer.tests[name])
            estimate = mean(own.tests[name].values()) - mean(peer.tests[name].values())
            lines.append(verdict(pair, name, difference, estimate))
    return lines


def verdict(pair: Pair, test: str, difference: Difference | None, estimate: float) -> str:
    """Return what the scores of a pair on a test set show."""
    between = f"{test}: {pair.own.name} against {pair.peer.name}: {100 * estimate:+.2f}"
    if difference is None:
        return f"{between}; with one seed, that may be chance."
    between += f" [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
    if not difference.is_clear:
        return f"{between}; that may be chance."
    return f"{between}: it is {'better' if difference.mean > 0 else 'worse'}."


def notes(bench: Bench) -> list[str]:
    """Return how everything was measured."""
    options = bench.options
    seeds = ", ".join(map(str, options.seeds))
    grid = ", ".join(f"{rate:g}" for rate in options.rates)
    length = f"{options.steps:,} steps" if options.steps else "an epoch"
    has_labels = any(part.format == "A" for part in bench.parts)
    whole_labels = (
        f" For {ANGLE_EMB}, labels above 0 are put between 1 and 2 for both, in the same order: it finds its positives "
        f"by int(label), and in labels of 2 and more wrong ones."
        if has_labels
        else ""
    )
    choosing = "the first seed" if options.rate_seeds == 1 else f"the first {options.rate_seeds} seeds"
    same_settings = [
        f"Same settings: {length} at {options.learning_rate:g}. Each peer's loss of one batch, with dropout off, was "
        f"checked to be this project's.{whole_labels}",
    ]
    as_they_are = ", labels are as they are" if has_labels else ""
    own_objectives = [
        *(f"{OWN}, {name}: `train.py {' '.join(OURS[name])}` beside that." for name in options.ours),
        f"Same steps, same time: the objectives are those that each system documents{as_they_are}, and the "
        f"learning rate, of {grid}, is the one with the best mean on the validation rows over {choosing}. All train "
        f"for {length}, or in equal time for as many steps as the side can do in the time of the fastest peer's, by a "
        f"trial in turns before.",
    ]
    equalities = {part.equality for part in bench.parts}
    return [
        f"Scores: Spearman's correlation of cosines, times 100, mean and standard deviation over the seeds {seeds}. "
        f"Every saved model, the last of its run, is scored by the same code, with mean pooling.",
        f"Differences: seed by seed, with Student's interval of {LEVEL:.0%}. It has the chance of seeds, not that of "
        f"the rows in the test set, and each holds by itself: of twenty, one is expected to miss.",
        f"Equal for all: model, rows, batches of {options.batch_size}, {options.max_length} tokens, AdamW without "
        f"weight decay, gradients clipped at 1, {WARMUP_RATIO:.0%} of the steps warm-up, then linearly to 0. Of a "
        f"seed, all train on the same batches.",
        *(same_settings if "settings" in equalities else []),
        *(own_objectives if equalities - {"settings"} else []),
        f"Time of steps is what the steps took, process what the whole process did. This project tokenises before its "
        f"first step, {ANGLE_EMB} and {SBERT} in each.",
        "Test scores are stored when a run ends, so that its model need not be kept, and read for what validation "
        "chose.",
    ]
