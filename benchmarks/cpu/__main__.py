"""`python -m benchmarks.cpu`: see `benchmarks.cpu.measure`."""

import sys

from benchmarks.cpu.measure import main

sys.exit(main())
