"""Talk with a model in the terminal.

Ctrl-C ends an answer, /clear begins a new conversation, Ctrl-D leaves.
"""

import argparse
import contextlib
import io
import sys

from rabbitllm.cli.options import add_model_arguments, load, positive, prose

EXAMPLE = '  rabbitllm chat Qwen/Qwen2.5-7B-Instruct --system "Answer briefly."'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    add_model_arguments(parser)
    parser.add_argument(
        "--system", type=prose, metavar="TEXT", help="a system message before everything"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=512,
        metavar="N",
        help="of each answer (%(default)s)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    from rabbitllm.cli.answer import answer_aloud, placement

    with contextlib.suppress(ImportError):  # gives input() editing and history
        import readline  # noqa: F401
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # which `prose` makes good
    model = load(arguments)
    if not model.tokenizer.chat_template:
        raise ValueError(
            f"{arguments.model} has no chat template: it is no chat model. `rabbitllm run` "
            "continues a text."
        )
    print(f"Loaded: {placement(model)}", file=sys.stderr)
    start = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages = list(start)
    while (line := _ask()) is not None:
        if line == "/clear":
            messages = list(start)
        elif line:
            messages.append({"role": "user", "content": line})
            text, _ = answer_aloud(model, messages, arguments.max_new_tokens)
            messages.append({"role": "assistant", "content": text})
    return 0


def _ask() -> str | None:
    """The next line, without the white space around it; None at the end of the input."""
    terminal = sys.stdin.isatty()
    try:
        return prose(input("> " if terminal else "").strip())
    except EOFError:
        if terminal:
            print()
        return None
