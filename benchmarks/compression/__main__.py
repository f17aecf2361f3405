"""`python -m benchmarks.compression`: see `benchmarks.compression.measure`."""

import sys

from benchmarks.compression.measure import main

sys.exit(main())
