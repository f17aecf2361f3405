"""`python -m benchmarks.askers`: see `benchmarks.askers.measure`."""

import sys

from benchmarks.askers.measure import main

sys.exit(main())
