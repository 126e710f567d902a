"""The data-plane benchmark; `python benchmarks/dataplane/run.py --help` says what it measures."""

from __future__ import annotations

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path.insert(0, str(BENCHMARKS))  # benchmarks are no distribution: they import each other from their folder
    from dataplane.command import main

    sys.exit(main())
