"""Run one job and print its answer as the last line: python -m benchmarks.throughput.worker JOB"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

from benchmarks.throughput.jobs import ANGLE_EMB, BARE, CACHED, OWN, SBERT, Job

#: Each imports only its own library: the peers run in other environments, and imports take memory.
MODULES = {OWN: "own", BARE: "own", ANGLE_EMB: "peer_angle_emb", SBERT: "peer_sbert", CACHED: "peer_sbert"}


def main() -> None:
    """Read the job, run it and print the answer."""
    job = Job(**json.loads(sys.argv[1]))
    answers = os.dup(1)
    os.dup2(2, 1)  # send whatever the libraries print to stderr
    answer = import_module(f"benchmarks.throughput.{MODULES[job.system]}").run(job)
    os.write(answers, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    main()
