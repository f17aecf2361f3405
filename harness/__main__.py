"""`python -m harness`: each module in `harness.commands` is a sub-command."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from harness import commands
from harness.running.environments import OrchestrationError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sub-command that the arguments name; returns its exit status.

    Args:
        argv: the arguments; None takes the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m harness",
        description="Measure architectures x transformers releases x attention backends.",
        epilog="`python -m harness COMMAND --help` explains a command.",
    )
    choices = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for found in pkgutil.iter_modules(commands.__path__):
        module = importlib.import_module(f"{commands.__name__}.{found.name}")
        summary, _, rest = (module.__doc__ or "").partition("\n")
        command = choices.add_parser(
            found.name.replace("_", "-"),
            help=summary[0].lower() + summary[1:].rstrip("."),
            description=f"{summary}\n{rest}",
            epilog=f"example:\n{module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(main=module.main)
        module.add_arguments(command)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.main(arguments))
    except (ValueError, FileNotFoundError, OrchestrationError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
