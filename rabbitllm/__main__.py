"""`python -m rabbitllm` is the `rabbitllm` command."""

import sys

from rabbitllm.cli import main

sys.exit(main())
