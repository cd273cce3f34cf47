#!/usr/bin/env python3
"""Makes calls in a directory and tells what each gave, so that two filesystems can be compared.

    main.py tables DIR [NAME...]     the hand-written tables (all, or those named)
    main.py random DIR SEED STEPS    a random walk
    main.py names                    names of the tables

Needs root. One line per call; what must not differ between two filesystems that behave alike.
"""

import sys

import attributes  # noqa: F401
import data  # noqa: F401
import locks  # noqa: F401
import names  # noqa: F401
import support
import walk


def main(words):
    match words:
        case ["names"]:
            for function in support.CASES:
                print(function.__name__)
        case ["tables", top, *wanted]:
            known = {f.__name__ for f in support.CASES}
            if unknown := set(wanted) - known:
                sys.exit(f"no such table: {', '.join(sorted(unknown))}")
            for function in support.CASES:
                if not wanted or function.__name__ in wanted:
                    support.run(function, top)
        case ["random", top, seed, steps]:
            walk.walk(top, int(seed), int(steps))
        case _:
            sys.exit(__doc__)


main(sys.argv[1:])
