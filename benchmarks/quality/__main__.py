"""Quality of models trained by three systems: python -m benchmarks.quality --results FILE [--only steps-A ...]

This project, angle_emb and sentence-transformers train the same model on the same rows: with the same settings and
objective; for the same number of steps, and for the same time, each with its own objective and its best learning rate.
Of a seed, all train on the same batches. Validation rows choose the rate; test rows are read for what they chose, by
--report. Each run is a process of its own and becomes a line of --results; the same command goes on where it was ended.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from angle.files import write_durably
from benchmarks.quality.bench import Bench, device_name
from benchmarks.quality.records import Records, locked
from benchmarks.quality.report import section
from benchmarks.quality.sides import OURS, PARTS
from benchmarks.throughput.jobs import ANGLE_EMB, OWN, PEERS, SBERT
from benchmarks.throughput.report import facts_of

GRID = (2e-5, 5e-5, 1e-4, 2e-4)


def parse(words: list[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stsb = "mteb/stsbenchmark-sts"
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="a folder or a hub name")
    parser.add_argument("--stsb", default=stsb, help="training rows (A): a file or a hub name")
    parser.add_argument("--nli", default="SeanLee97/all_nli_angle_format_b", help="triples (B): a file or a hub name")
    parser.add_argument("--valid", default=stsb, help="pairs that choose learning rates: a file or a hub name")
    parser.add_argument(
        "--test", nargs="+", default=[f"stsb={stsb}"], metavar="NAME=FILE", help="held-out pairs: files or hub names"
    )
    parser.add_argument("--results", type=Path, required=True, help="the file of finished runs, a line of JSON each")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts instead of all")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="only these")
    parser.add_argument(
        "--ours", nargs="+", choices=OURS, default=list(OURS), help="only these of sides.py's settings of this project"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rates", nargs="+", type=float, default=list(GRID), help="learning rates to choose from")
    parser.add_argument("--rate-seeds", type=int, default=2, help="how many of the seeds, the first, choose them")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="of the same settings")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--rows", type=int, help="the first training rows instead of all")
    parser.add_argument("--steps", type=int, help="steps of a run, for equal time of the fastest peer; None: an epoch")
    parser.add_argument("--threads", type=int, help="threads of a run ($OMP_NUM_THREADS) instead of torch's default")
    parser.add_argument("--at-once", type=int, default=1, help="runs at the same time, but for those that are timed")
    parser.add_argument("--unchecked", action="store_true", help="leave out the comparison of losses")
    parser.add_argument("--dry-run", action="store_true", help="list what is left, and about how long it takes")
    parser.add_argument("--report", type=Path, help="run nothing, and write what is measured to this new file")
    options = parser.parse_args(words)
    above_zero = ("batch_size", "max_length", "rows", "steps", "threads", "at_once", "rate_seeds", "learning_rate")
    given = {name: [getattr(options, name)] for name in above_zero} | {"rates": options.rates}
    for name, numbers in given.items():
        if any(number is not None and number <= 0 for number in numbers):
            parser.error(f"--{name.replace('_', '-')} {' '.join(map(str, numbers))}: it must be above 0")
    if options.report and options.report.exists():
        parser.error(f"--report {options.report} exists: give a new file")
    tests = dict(word.partition("=")[::2] for word in options.test)
    if len(tests) < len(options.test) or not all(name and source for name, source in tests.items()):
        parser.error(f"--test {' '.join(options.test)}: give each as NAME=FILE, with a name of its own")
    options.test = tests
    options.seeds, options.rates = sorted(set(options.seeds)), sorted(set(options.rates))
    return options


def dry_run(bench: Bench) -> None:
    """Print the runs that are left."""
    total, is_known = 0.0, True
    left = bench.left(bench.parts)
    for run in left:
        seconds = bench.seconds(run)
        total, is_known = total + (seconds or 0), is_known and seconds is not None
        print(f"{run.name}: {'unknown' if seconds is None else f'{seconds:,.0f} s'}")
    for part in bench.parts:
        unknown = [side.name for side in bench.sides(part) if bench.steps(part, side) is None]
        if unknown:
            print(f"{part.name}: steps of {', '.join(unknown)} are unknown until their time is measured")
        undecided = [side.name for side in bench.sides(part) if bench.rate(part, side) is None]
        if undecided:
            print(f"{part.name}: more seeds of {', '.join(undecided)} follow with the learning rate that is chosen")
    about = f"about {total / 3600:.1f} h{'' if is_known else ' and those that are unknown'}"
    print(f"{len(left)} runs are left, {about if left else 'none to wait for'}")


def main() -> int:
    """Do what is left, or report what is there; return 1 if a run failed."""
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        if options.report:
            bench = Bench(options, Path(scratch), Records(options.results))
            peer = bench.inputs.versions(ANGLE_EMB) if ANGLE_EMB in options.peers else {}
            command = shlex.join(["python", "-m", "benchmarks.quality", *sys.argv[1:]])
            code = bench.inputs.versions(OWN)[OWN]
            facts = facts_of(command, device_name(), code, with_sbert=SBERT in options.peers, peer=peer)
            write_durably(options.report, section(bench, facts))
            print(options.report.read_text(encoding="utf-8"))
            return 0
        if options.dry_run:
            dry_run(Bench(options, Path(scratch), Records(options.results)))
            return 0
        with locked(options.results) as records:
            try:
                return int(Bench(options, Path(scratch), records).measure() > 0)
            except KeyboardInterrupt:
                print("\nInterrupted: the same command goes on with the run that was lost.", file=sys.stderr)
                return 130


if __name__ == "__main__":
    sys.exit(main())
