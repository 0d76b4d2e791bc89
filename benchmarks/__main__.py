"""``python -m benchmarks``: measures scenarios with several peers, which take turns in one run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from . import compare, svg, table
from .bench import MIB, Bench
from .contenders import BACKENDS, CLUSTER_PEERS, PEERS, find, revisions
from .results import Outcome, Verdict, judge
from .scenarios import SCENARIOS, Scenario
from .work import ROWS

SIZES = {False: "100,1000,10000,100000", True: "1000,100000,1000000"}
QUICK_SIZES = {False: [100], True: [100, 1000]}
"""Of a directory, and of a cluster."""

QUICK_BACKENDS = ("asyncio", "trio")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="measure a cluster's store, on servers that are started for it",
    )
    parser.add_argument("--sizes", help="numbers of images, separated by commas")
    parser.add_argument("--scenario", nargs="+", help="the scenarios; by default all")
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=BACKENDS,
        help="the event loops; by default all, unless --quick",
    )
    parser.add_argument(
        "--peer", nargs="+", choices=PEERS + CLUSTER_PEERS, help="the peers; by default all"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--item-size", type=int, default=1024, help="MiB of the large item")
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="DIR",
        help="write the page and its picture into this directory",
    )
    parser.add_argument("--markdown", type=Path, help="write the table of targets to this file")
    parser.add_argument("--dir", type=Path, help="work in this directory, on the disk to measure")
    parser.add_argument(
        "--quick", action="store_true", help="run briefly, as a smoke test: the figures mean little"
    )
    parser.add_argument(
        "--compare",
        metavar="REV",
        help="count the processor-bound work of this revision of the library and of another one, "
        "and run the scenarios that --scenario names with both; 'release' is the last release",
    )
    parser.add_argument(
        "--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), help="what to count"
    )
    parser.add_argument(
        "--fail-above", type=float, metavar="RATIO", help="exit with 1 if a count has grown by more"
    )
    return parser.parse_args()


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    found: Sequence[Scenario] = SCENARIOS
    if options.cluster:
        from . import cluster

        found = cluster.SCENARIOS
    chosen = [s for s in found if not options.scenario or s.name in options.scenario]
    if not chosen:
        sys.exit(f"The scenarios are {', '.join(s.name for s in found)}")
    return chosen


def _bench(options: argparse.Namespace, scratch: Path) -> Bench:
    backends = options.backend or list(QUICK_BACKENDS if options.quick else BACKENDS)
    peers = options.peer or list(CLUSTER_PEERS if options.cluster else PEERS)
    contenders, skipped = find(peers, backends, scratch)
    for peer, reason in skipped.items():
        print(f"without {peer}: {reason}")
    if options.quick:
        return Bench(
            scratch, contenders, QUICK_SIZES[options.cluster], 1, 4 * MIB, 0.1, 64, warms_up=False
        )
    sizes = [int(size) for size in (options.sizes or SIZES[options.cluster]).split(",")]
    return Bench(scratch, contenders, sizes, options.rounds, options.item_size * MIB)


@contextmanager
def _with_servers(bench: Bench) -> Iterator[Bench]:
    """Start servers for the block, and return a bench with the stores of a cluster."""
    from .cluster import ClusterBench
    from .places import serving

    with serving() as places:
        yield ClusterBench(places=places, **vars(bench))


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


def _write_page(
    options: argparse.Namespace,
    chosen: Sequence[Scenario],
    outcomes: Sequence[Outcome],
    verdicts: Sequence[Verdict],
) -> None:
    drawn = {s.name: s.title for s in chosen if s.is_drawn}
    titles = {s.name: s.title for s in chosen}
    page, picture = ("CLUSTER.md", "cluster.svg") if options.cluster else ("README.md", "costs.svg")
    (options.page / picture).write_text(svg.draw(drawn, outcomes))
    rows = [
        "# Costs of a cluster" if options.cluster else "# Costs",
        "",
        f"Written by `python -m benchmarks {' '.join(_shown(sys.argv[1:]))}`:",
        f"CPython {platform.python_version()}, Linux {platform.release()},",
        f"{os.cpu_count()} processors.",
        "[NOTES.md](NOTES.md) says how costs are measured, what floors are, and what was tried.",
        "",
        f"![Each cost against the number of images, on logarithmic scales]({picture})",
        "",
        "How a cost grows with the number of images, as an exponent: 0 means that it does not",
        "depend on the number, 1 that it is proportional to it.",
        "",
        *table.growth(outcomes, drawn),
        "",
        "Each target is a ratio, or an amount of memory. Of several sizes, the table shows the",
        "worst, in bold type if it misses the target:",
        "",
        *table.markdown(verdicts, titles),
    ]
    (options.page / page).write_text("\n".join(rows) + "\n")


def _shown(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments without paths of this machine."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if not {"--dir", "--json"} & {before, argument}:
            yield argument


def _compare(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="aimagestore-bench-", dir=options.dir) as directory:
        scratch = Path(directory)
        try:
            other = compare.check_out(options.compare, scratch)
        except compare.NothingToCompareError as error:
            print(f"There is no release to compare with: {error}.")
            return 0
        unit, counter = compare.find_counter(scratch)
        print(f"{unit}: this revision's by those of {options.compare}")
        ratios = compare.count(other, scratch, counter, options.rows)
        if options.scenario:
            backends = options.backend or list(QUICK_BACKENDS)
            pair = revisions(other, options.compare, backends)
            sizes = [int(size) for size in (options.sizes or SIZES[False]).split(",")]
            bench = Bench(scratch, pair, sizes, options.rounds, options.item_size * MIB)
            _run(bench, _scenarios(options))
    limit = options.fail_above
    grown = [each.row for each in ratios if limit is not None and each.ratio > limit]
    for row in grown:
        print(f"more than {limit} x: {row}")
    return 1 if grown else 0


def main() -> int:
    """Run what the options say, and return the exit code: 1 if a count has grown too much.

    :raises PeerError: when a peer failed
    """
    options = _options()
    if options.compare:
        return _compare(options)
    chosen = _scenarios(options)
    with tempfile.TemporaryDirectory(prefix="aimagestore-bench-", dir=options.dir) as directory:
        bench = _bench(options, Path(directory))
        with _with_servers(bench) if options.cluster else nullcontext(bench) as ready:
            outcomes, verdicts = _run(ready, chosen)
    print("", *table.verdicts(verdicts), sep="\n")
    if options.json:
        _save(options.json, outcomes, verdicts)
    if options.markdown:
        rows = table.markdown(verdicts, {s.name: s.title for s in chosen})
        options.markdown.write_text("\n".join(rows) + "\n")
    if options.page:
        _write_page(options, chosen, outcomes, verdicts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
