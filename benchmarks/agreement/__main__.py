"""`python -m benchmarks.agreement`: see `benchmarks.agreement.measure`."""

import sys

from benchmarks.agreement.measure import main

sys.exit(main())
