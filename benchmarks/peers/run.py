"""warmstart and its peers side by side: the same pictures, the same weights, the same minutes, the same cores.

Each program gets class folders for training and test pictures (peers: without labels), and has to have its last
prediction written when the minutes are over, imports and test included. Every cell (data, minutes, program, seed) is
kept, so that the same command goes on where it stopped; `--again` runs the cells that it names once more.

A peer is compared with warmstart on the same test pictures: difference with interval and McNemar's test or, where there
are several seeds, with the spread of those.

usage: python -m benchmarks.peers.run [--minutes 2,8] [--data cifar10,elpv,fashion] [--peers NAME,…] [--seeds 1]
       [--again] [--limit N]
"""

from __future__ import annotations

import argparse
from itertools import product

from benchmarks.peers import cells, data, judged
from benchmarks.peers.cells import PROGRAMS, Cell, Outcome


def main() -> None:
    """Run what has not been run, and write what all kept cells came to."""
    options = _options()
    wanted = [
        Cell(name, 60 * float(minutes), program, seed, options.limit)
        for seed, name, minutes, program in product(
            range(options.seeds), options.data.split(","), options.minutes.split(","), options.peers.split(",")
        )
    ]
    for number, cell in enumerate(wanted, start=1):
        known = None if options.again else cells.kept(cell)
        outcome = known or cells.run(cell)
        print(f"{number}/{len(wanted)}  {_line(outcome, cell)}{'  (kept)' if known else ''}", flush=True)
    path, words = judged.write(options.limit)
    print(f"{words}\n{path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", default="2,8")
    parser.add_argument("--data", default=",".join(data.LOADERS))
    parser.add_argument(
        "--peers",
        default=",".join(name for name in PROGRAMS if PROGRAMS[name].usual),
        help="what to run, warmstart's two rows included",
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run cells that are kept once more")
    parser.add_argument("--limit", type=int, help="most pictures of each split; results stay out of the repository")
    options = parser.parse_args()
    for key, known in (("data", data.LOADERS), ("peers", PROGRAMS)):
        if unknown := set(getattr(options, key).split(",")) - set(known):
            parser.error(f"--{key}: {', '.join(sorted(unknown))} (known: {', '.join(known)})")
    return options


def _line(outcome: Outcome, cell: Cell) -> str:
    name = f"{outcome.data:<8} {outcome.seconds_given / 60:4.2g} min  {outcome.program:<15} seed {outcome.seed}"
    if outcome.status != "done":
        last = (outcome.why.strip().splitlines() or ["no reason given"])[-1]
        return f"{name}  {outcome.status}: {last[:160]}"
    share = judged.accuracy(outcome, cell.limit)
    peak = f"{outcome.peak_bytes / 2**30:.1f} GiB"
    return f"{name}  {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]  {outcome.seconds:6.1f} s  {peak}"


if __name__ == "__main__":
    main()
