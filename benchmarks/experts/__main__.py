"""`python -m benchmarks.experts`: see `benchmarks.experts.measure`."""

import sys

from benchmarks.experts.measure import main

sys.exit(main())
