"""Answer one prompt; the text goes to stdout as it comes, the speed to stderr.

The prompt goes through the tokenizer's chat template if it has one, and is continued as it is
otherwise. Ctrl-C ends the answer.
"""

import argparse
import sys
import time

from rabbitllm.cli.options import add_answer_arguments, add_model_arguments, load, prose

EXAMPLE = (
    '  rabbitllm run Qwen/Qwen2.5-7B-Instruct "What is the capital of France?" --device-memory 4GiB'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("prompt", type=prose, metavar="PROMPT", help="what to answer or continue")
    add_answer_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    from rabbitllm.cli.answer import answer_aloud, options_of, placement

    begun = time.perf_counter()
    model = load(arguments)
    print(f"Loaded in {time.perf_counter() - begun:.1f} s: {placement(model)}", file=sys.stderr)
    system = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages = [*system, {"role": "user", "content": arguments.prompt}]
    answer = answer_aloud(model, messages, [], **options_of(arguments))
    if answer.finish_reason == "cancelled":
        raise KeyboardInterrupt
    return 0
