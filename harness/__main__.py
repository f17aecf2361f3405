"""`python -m harness`: each module in `harness.commands` is a sub-command."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from harness import commands
from harness.running.environments import OrchestrationError

EXAMPLE = "example: python -m harness run --arch llama,qwen2 --attn sdpa"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sub-command that the arguments name; return its exit status.

    A sub-command is a module with `HELP`, `add_arguments(parser)` and `run(args) -> int`. It
    imports what is heavy in `run`, for the environment that plans and renders has no torch.
    """
    parser = argparse.ArgumentParser(
        prog="python -m harness",
        description="Measure architectures x transformers releases x attention backends.",
        epilog=EXAMPLE,
    )
    choices = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for found in pkgutil.iter_modules(commands.__path__):
        module = importlib.import_module(f"{commands.__name__}.{found.name}")
        name = found.name.replace("_", "-")
        command = choices.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except (ValueError, FileNotFoundError, OrchestrationError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
