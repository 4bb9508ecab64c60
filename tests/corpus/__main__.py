"""`PYTHONPATH=tests:benchmarks python -m corpus [KIND …] [--from N] [--count N]`: the corpus tried, and its table.

Exit code 1 where anything is wrong; what is wrong is printed as it is found.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from itertools import islice
from pathlib import Path

from corpus.cases import SEED
from corpus.chosen import corpus, kinds
from corpus.inputs import Base
from corpus.tried import Tried, table, tried


def main() -> int:
    """Try what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="*", default=list(kinds()))
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--named", default="", help="only inputs with this in their name")
    asked = parser.parse_args()
    found: list[Tried] = []
    inputs = 0
    with tempfile.TemporaryDirectory(prefix="corpus-") as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        base = Base(Path(scratch) / "base")
        base.root.mkdir()
        for kind in asked.kind:
            chosen = [i for i in corpus(base, kind) if asked.named in i.name]
            stop = None if asked.count is None else asked.start + asked.count
            for given in islice(chosen, asked.start, stop):
                inputs += 1
                for one in tried(base, given, Path(scratch) / "place"):
                    found.append(one)
                    if one.wrong:
                        print(f"WRONG {one.input.kind}: {one.input.name}: {one.wrong}", flush=True)
    print(f"seed {SEED}, {inputs} inputs, {len(found)} commands, {sum(t.outcome.seconds for t in found):.0f} s")
    print(table(found))
    slowest = sorted(found, key=lambda one: -one.outcome.seconds)[:5]
    print("slowest:", *(f"{t.outcome.seconds:.1f} s {t.input.kind}: {t.input.name}" for t in slowest), sep="\n  ")
    return int(any(one.wrong for one in found))


if __name__ == "__main__":
    sys.exit(main())
