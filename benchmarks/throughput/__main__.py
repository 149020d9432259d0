"""Training and encoding speed against two peers: python -m benchmarks.throughput [--only stsb-32 ...]

Measures this project, angle_emb and sentence-transformers in one run. They alternate, each in a separate process, with
the same model, rows, batch size and precision, after a check that their losses agree. angle_emb pins other versions, so
it is installed into its own environment the first time.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from benchmarks.throughput import prepare, report
from benchmarks.throughput.bench import Bench
from benchmarks.throughput.jobs import ANGLE_EMB, PEERS, SBERT
from benchmarks.throughput.workloads import NOTES, WORKLOADS


def parse(words: list[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minilm", default="sentence-transformers/all-MiniLM-L6-v2", help="a folder or a hub name")
    parser.add_argument("--smollm2", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a folder or a hub name")
    parser.add_argument("--stsb", default="mteb/stsbenchmark-sts", help="training rows (A): a file or a hub name")
    parser.add_argument(
        "--stsb-test", default="mteb/stsbenchmark-sts", help="sentences to encode: a file or a hub name"
    )
    parser.add_argument("--nli", default="SeanLee97/all_nli_angle_format_b", help="triples (B): a file or a hub name")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, help="these workloads instead of all that can run here")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), help="only these; without a name, this project alone"
    )
    parser.add_argument("--precision", nargs="+", choices=("float32", "bf16"), help="these instead of all")
    parser.add_argument("--rounds", type=int, default=3, help="how often every system takes its turn")
    parser.add_argument("--steps", type=int, help="steps of a round that count, instead of the workload's own number")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them; at least 1")
    parser.add_argument(
        "--techniques", action="store_true", help="instead of the peers, this project without each of its techniques"
    )
    parser.add_argument("--unchecked", action="store_true", help="leave out the comparison of losses")
    parser.add_argument("--markdown", type=Path, help="a file that gets the run's section for RESULTS.md")
    options = parser.parse_args(words)
    if min(options.rounds, options.warmup, options.steps or 1) < 1:
        parser.error("--rounds, --steps and --warmup must be at least 1")
    return options


def main() -> None:
    """Measure, and print the tables."""
    import torch

    options = parse(sys.argv[1:])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    chosen = [WORKLOADS[name] for name in options.only or WORKLOADS]
    if options.techniques:
        chosen, options.peers = [workload for workload in chosen if workload.is_training], []
    waiting = [workload for workload in chosen if workload.needs_gpu and device is None]
    done = []
    command = shlex.join(["python", "-m", "benchmarks.throughput", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        peer = prepare.peer_versions(bench.peer_python) if ANGLE_EMB in options.peers else {}
        facts = report.facts_of(command, device, report.commit(), with_sbert=SBERT in options.peers, peer=peer)
        print(f"{facts['hardware']}\n{facts['versions']}", flush=True)
        for workload in chosen:
            if workload in waiting:
                print(f"\n{workload.title}: needs a GPU, left out", flush=True)
                continue
            for precision in workload.precisions:
                if precision in (options.precision or workload.precisions):
                    measure = bench.take_apart if options.techniques else bench.measure
                    done.append(measure(workload, precision))
                    print(f"\n{report.title(done[-1])}\n\n{report.table(done[-1], device)}", flush=True)
                    print("".join(f"\n{check}" for check in done[-1].checks), flush=True)
                    if options.markdown:
                        options.markdown.write_text(report.section(done, waiting, facts), encoding="utf-8")
    print("\n" + "\n".join(NOTES))


if __name__ == "__main__":
    main()
