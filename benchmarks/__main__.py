"""``python -m benchmarks``: named scenarios against named peers, in one run, taking turns."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from . import svg, table
from .bench import MIB, Bench
from .contenders import BACKENDS, PEERS, find
from .results import Outcome, Verdict, judge
from .scenarios import SCENARIOS, Scenario

QUICK_BACKENDS = ("asyncio", "trio")


def _options() -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", default="100,1000,10000,100000", help="numbers of images")
    parser.add_argument("--scenario", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--backend", nargs="+", choices=BACKENDS, help="all of them, unless --quick"
    )
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--item-size", type=int, default=1024, help="MiB of the large item")
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    parser.add_argument("--svg", type=Path, help="draw the picture into this file")
    parser.add_argument("--markdown", type=Path, help="write the table of targets to this file")
    parser.add_argument("--dir", type=Path, help="work in this directory, on the disk to measure")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test, its figures mean little"
    )
    return parser.parse_args()


def _bench(options: argparse.Namespace, scratch: Path) -> Bench:
    backends = options.backend or list(QUICK_BACKENDS if options.quick else BACKENDS)
    contenders, skipped = find(options.peer, backends, scratch)
    for peer, reason in skipped.items():
        print(f"without {peer}: {reason}")
    if options.quick:
        return Bench(scratch, contenders, [100], 1, 4 * MIB, 0.1, 64, warms_up=False)
    sizes = [int(size) for size in options.sizes.split(",")]
    return Bench(scratch, contenders, sizes, options.rounds, options.item_size * MIB)


def _run(bench: Bench, scenarios: list[Scenario]) -> tuple[list[Outcome], list[Verdict]]:
    outcomes: list[Outcome] = []
    verdicts: list[Verdict] = []
    for scenario in scenarios:
        for outcome in scenario.run(bench, scenario):
            print(f"\n{scenario.title}, {outcome.size:,}")
            reference = next(iter(bench.ours), "")
            print(*table.medians(outcome, reference), sep="\n", flush=True)
            outcomes.append(outcome)
            verdicts += judge(outcome, scenario.targets, bench.ours)
    return outcomes, verdicts


def _save(path: Path, outcomes: list[Outcome], verdicts: list[Verdict]) -> None:
    document = {
        "machine": {
            "processors": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "outcomes": [
            asdict(o) | {"medians": {label: o.median(label) for label in o.samples}}
            for o in outcomes
        ],
        "targets": [asdict(v) | {"is_met": v.is_met} for v in verdicts],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def main() -> int:
    """Run what the options say; 1 when a peer failed."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="aimagestore-bench-", dir=options.dir) as directory:
        bench = _bench(options, Path(directory))
        chosen = [s for s in SCENARIOS if s.name in options.scenario]
        outcomes, verdicts = _run(bench, chosen)
    print("", *table.verdicts(verdicts), sep="\n")
    if options.json:
        _save(options.json, outcomes, verdicts)
    if options.markdown:
        rows = table.markdown(verdicts, {s.name: s.title for s in chosen})
        options.markdown.write_text("\n".join(rows) + "\n")
    if options.svg:
        titles = {s.name: s.title for s in chosen if s.is_drawn}
        options.svg.write_text(svg.draw(titles, outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
