"""`python -m benchmarks.formats`: see `benchmarks.formats.measure`."""

import sys

from benchmarks.formats.measure import main

sys.exit(main())
