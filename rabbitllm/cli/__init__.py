"""The `rabbitllm` command: one module for each sub-command.

A module has `EXAMPLE`, `add_arguments(parser)` and `main(arguments)`, which returns the exit
status, and may have `UNANSWERED`, the exit status of what went wrong where `FAILED` is an answer.
What takes seconds to import is imported inside `main`, so that `--help` answers at once.
"""

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from typing_extensions import override

from rabbitllm import __version__
from rabbitllm.cli import batch, bench, bisect, cache, chat, check, doctor, plan, run, serve, split
from rabbitllm.cli.failures import EXPECTED, FAILED, INTERRUPTED, explain
from rabbitllm.cli.parser import Parser

COMMANDS = (run, chat, plan, split, cache, doctor, bench, serve, batch, check, bisect)
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
STEPS = (
    "rabbitllm.checkpoint.codecs.kept_code",
    "rabbitllm.checkpoint.hub",
    "rabbitllm.checkpoint.store",
    "rabbitllm.streaming.engine",
    "rabbitllm.releases.environments",
)
"""What says, before something that takes long, what that is: compilation, downloads, layer stores,
loading, environments."""

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Args:
        argv: the arguments; None takes the process's own.
    """
    _prepare_streams()
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.main is None:
        parser.print_help()
        return 0
    _prepare_logging(LEVELS[min(arguments.verbose, len(LEVELS) - 1)])
    if not sys.stderr.isatty():  # our own bars see to it alone
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        arguments.check(arguments)
        status: int = arguments.main(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return int(arguments.unanswered)
    except Exception as error:  # what is not expected is shown whole
        explained = explain(error) if isinstance(error, EXPECTED) else None
        if explained is None:
            if arguments.unanswered == FAILED:  # which is how a traceback ends
                raise
            traceback.print_exc()
            return int(arguments.unanswered)
        line, status = explained
        logger.debug("What went wrong:", exc_info=error)
        print(f"rabbitllm: {line}", file=sys.stderr)
        return max(status, int(arguments.unanswered))


def _prepare_logging(level: int) -> None:
    """Has warnings printed, and the steps of loading; more if that is asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for name in STEPS:
        logging.getLogger(name).setLevel(min(level, logging.INFO))


class _Formatter(logging.Formatter):
    """Of the steps of loading only what they are."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        step = record.name in STEPS and record.levelno == logging.INFO
        return record.getMessage() if step else super().format(record)


def _prepare_streams() -> None:
    """Makes streams that a caller closed swallow everything, and stdout print what it can.

    Models write every alphabet, terminals may have one.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rabbitllm",
        description="Run language models larger than memory: their layers stream while stock "
        "transformers models run.",
        epilog="example:\n  rabbitllm run Qwen/Qwen2.5-7B-Instruct 'What is the capital of France?'"
        "\n\n`rabbitllm COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rabbitllm {__version__}")
    parser.set_defaults(main=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    for module in COMMANDS:
        _add_command(commands, module)
    return parser


def _add_command(commands: "argparse._SubParsersAction[Parser]", module: ModuleType) -> None:
    summary, _, rest = (module.__doc__ or "").partition("\n")
    parser = commands.add_parser(
        module.__name__.rpartition(".")[2],
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=f"{summary}\n{rest}",
        epilog=f"example:\n{module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log more; -vv also shows tracebacks"
    )
    unanswered = getattr(module, "UNANSWERED", FAILED)
    parser.set_defaults(main=module.main, check=lambda _: None, unanswered=unanswered)
    module.add_arguments(parser)
