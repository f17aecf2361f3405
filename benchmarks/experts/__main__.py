"""`python -m benchmarks.experts`: see `benchmarks.experts.measure`."""

import os
import sys

# Of all engines alike, and before torch looks: where stock puts the experts of FP8 checkpoints
# together as it loads them, it leaves holes that nothing fits in, and runs out of memory.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

from benchmarks.experts.measure import main

sys.exit(main())
