"""`python -m benchmarks.decoding`: see `benchmarks.decoding.measure`."""

import sys

from benchmarks.decoding.measure import main

sys.exit(main())
