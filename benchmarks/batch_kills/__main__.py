"""`python -m benchmarks.batch_kills`: see `benchmarks.batch_kills.measure`."""

import sys

from benchmarks.batch_kills.measure import main

sys.exit(main())
