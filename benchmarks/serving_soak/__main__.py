"""`python -m benchmarks.serving_soak`: see `benchmarks.serving_soak.measure`."""

import sys

from benchmarks.serving_soak.measure import main

sys.exit(main())
