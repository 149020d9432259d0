"""Results of a workload's rounds, as lines of a table."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.throughput.figures import Spread, fastest, peak_flops, ratio, step_time
from benchmarks.throughput.jobs import ANGLE_EMB, BARE, OWN, REPO, SBERT
from benchmarks.throughput.workloads import NOTES, Workload

COLUMNS = ("system", "step", "rows/s", "tokens/s", "memory", "x bare", "against the faster peer")
PART_COLUMNS = ("system", "step", "rows/s", "tokens/s", "memory", "time of a step, against the whole")
ENCODE_COLUMNS = ("system", "all texts", "texts/s", "tokens/s", "memory", "", "against the peer")
MIB, GIB = 2**20, 2**30


@dataclass
class Measured:
    """The answers from all rounds of a workload in one precision."""

    workload: Workload
    precision: str
    tokens: float
    """Mean number of tokens in a step's distinct texts; for encoding, the tokens of all texts."""
    rows: int
    """Rows per step, or texts per encoding."""
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Answers by system, one per round."""
    checks: list[str] = field(default_factory=list)
    """What was found to agree beforehand, in words."""
    apart: bool = False
    """Whether the systems are this project with and without its techniques."""
    failed: dict[str, str] = field(default_factory=dict)
    """Peers that could not do the work here, or techniques that are not used here, with a short reason; they have no
    answers."""

    def seconds(self, system: str) -> list[list[float]]:
        """Return the seconds of each step of each round."""
        return [answer["seconds"] for answer in self.answers[system]]


def table(measured: Measured, device: str | None) -> str:
    """Return a workload's table."""
    if measured.apart:
        return parts_table(measured)
    columns: Sequence[str] = COLUMNS if measured.workload.is_training else ENCODE_COLUMNS
    if peak := peak_flops(device, measured.precision):
        columns = (*columns, "FLOP use")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for system in measured.answers:
        cells = _cells(measured, system)
        if peak:
            cells.append(_utilisation(measured, system, peak))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_failed_rows(measured, len(columns))])


def _failed_rows(measured: Measured, columns: int) -> list[str]:
    """Return a row for each system without answers."""
    return [f"| {' | '.join([system, why, *[''] * (columns - 2)])} |" for system, why in measured.failed.items()]


def parts_table(measured: Measured) -> str:
    """Return the table of the measurements of `Bench.take_apart`."""
    lines = [f"| {' | '.join(PART_COLUMNS)} |", f"|{'---|' * len(PART_COLUMNS)}"]
    whole = measured.seconds(OWN)
    for system in measured.answers:
        against = spread(ratio(measured.seconds(system), whole), 1, ".2f") if system != OWN else ""
        lines.append(f"| {' | '.join([*_cells(measured, system)[:5], against])} |")
    return "\n".join([*lines, *_failed_rows(measured, len(PART_COLUMNS))])


def _cells(measured: Measured, system: str) -> list[str]:
    rounds, time_of_step = measured.seconds(system), step_time(measured.seconds(system))
    memory = max(answer["memory"] for answer in measured.answers[system])
    peers = [measured.seconds(other) for other in measured.answers if other not in (OWN, BARE)]
    return [
        system,
        spread(time_of_step, 1000, ",.0f", " ms"),
        f"{measured.rows / time_of_step.median:,.1f}",
        f"{measured.tokens / time_of_step.median:,.0f}",
        f"{memory / GIB:.2f} GiB" if memory > 10 * GIB else f"{memory / MIB:,.0f} MiB",
        spread(ratio(rounds, measured.seconds(BARE)), 1, ".2f") if BARE in measured.answers else "",
        spread(ratio(fastest(peers), rounds), 1, ".2f") if system == OWN and peers else "",
    ]


def _utilisation(measured: Measured, system: str, peak: float) -> str:
    """Return the fraction of the device's peak FLOPs: those of a pass without padding, over the system's step time."""
    if BARE not in measured.answers:
        return ""
    flops = [step for answer in measured.answers[BARE] for step in answer["flops"]]
    return f"{sum(flops) / len(flops) / step_time(measured.seconds(system)).median / peak:.1%}"


def spread(found: Spread, scale: float, form: str, unit: str = "") -> str:
    """Return a median with the lowest and the highest value, scaled and formatted."""
    low, high = found.low * scale, found.high * scale
    return f"{found.median * scale:{form}}{unit} [{low:{form}}, {high:{form}}]"


def hardware(device: str | None) -> str:
    """Return the processor, its cores, the memory and the GPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    import psutil

    memory = psutil.virtual_memory().total / GIB
    return f"{name}, {psutil.cpu_count()} cores, {memory:.0f} GiB; {device or 'no GPU'}"


def commit() -> str:
    """Return the git commit of this project."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPO, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "an unknown commit"


def versions(*names: str) -> str:
    """Return the packages with their versions."""
    return ", ".join(f"{name} {version(name)}" for name in names)


def section(done: Sequence[Measured], waiting: Sequence[Workload], facts: Mapping[str, str]) -> str:
    """Return one run's section for RESULTS.md."""
    lines = [
        f"## {facts['date']}, {facts['hardware']}",
        "",
        "```bash",
        facts["command"],
        "```",
        "",
        facts["versions"],
        "",
    ]
    for measured in done:
        lines += [f"### {title(measured)}", "", table(measured, facts.get("gpu")), ""]
        if measured.checks:
            lines += [f"Checked before: {'; '.join(measured.checks)}.", ""]
    lines += [f"- {workload.title}: waits for a machine with a GPU." for workload in waiting]
    return "\n".join([*lines, *([""] if waiting else []), *(f"- {note}" for note in NOTES)]) + "\n"


def title(measured: Measured) -> str:
    """Return the title of a measurement."""
    return f"{measured.workload.title}, {measured.precision}"


def facts_of(
    command: str, device: str | None, code: str, *, with_sbert: bool, peer: Mapping[str, str]
) -> dict[str, str]:
    """Return the facts without which a result is worthless.

    Args:
        command: what was typed.
        device: name of the GPU; None without one.
        code: the commit of this project that was measured.
        with_sbert: whether sentence-transformers was.
        peer: the versions in angle_emb's environment; empty if that was not.

    """
    extra_packages = (SBERT,) if with_sbert else ()
    here = versions("torch", "transformers", "accelerate", *extra_packages)
    there = f" {ANGLE_EMB}: {', '.join(f'{name} {number}' for name, number in peer.items())}." if peer else ""
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(device),
        "command": command,
        "versions": f"{' and '.join([f'This project at {code}', *extra_packages])}: {here}.{there}",
    }
    return found | ({"gpu": device} if device else {})
