"""`python -m benchmarks.llama_cpp`: see `benchmarks.llama_cpp.measure`."""

import sys

from benchmarks.llama_cpp.measure import main

sys.exit(main())
