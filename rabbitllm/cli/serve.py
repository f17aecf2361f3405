"""Serve a model to programs that speak OpenAI's HTTP interface.

Answers /v1/models, /v1/chat/completions and /v1/completions, streamed or whole. Requests
share every pass over the weights, as many as there is memory for; /health and /metrics say how it
goes.
"""

import argparse
import ipaddress
import os
import socket
import sys

from rabbitllm.cli.options import (
    add_model_arguments,
    name_of,
    port,
)
from rabbitllm.cli.sharing import add_sharing_arguments, load_shared

EXAMPLE = """\
  rabbitllm serve Qwen/Qwen2.5-7B-Instruct --port 8000
  curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
    -d '{"model": "Qwen/Qwen2.5-7B-Instruct", "messages": [{"role": "user", "content": "Hi"}]}'"""

LEAST_QUEUE = 2**16
"""Bytes below which not even a short request finds room."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port",
        type=port,
        default=8000,
        help="port to listen on; 0 takes a free one (%(default)s)",
    )
    parser.add_argument("--name", help="what clients call the model (MODEL; a folder's last part)")
    parser.add_argument(
        "--api-key",
        type=_api_key,
        default=os.environ.get("RABBITLLM_API_KEY"),
        metavar="KEY",
        help="let in only clients that present it (RABBITLLM_API_KEY, which `ps` does not show)",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients may call this server by, besides localhost and addresses; may be "
        "repeated. Without it all names are allowed, unless --host is a loopback address",
    )
    parser.add_argument(
        "--queue",
        default="256MiB",
        metavar="SIZE",
        help="host memory for requests that wait or are answered, beside the model and its caches; "
        "others get status 429 (%(default)s)",
    )
    add_sharing_arguments(parser, sequences=64)


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    try:
        from rabbitllm.serving.app import create_app
        from rabbitllm.serving.gate import Admission
        from rabbitllm.serving.server import serve
        from rabbitllm.serving.worker import Worker
    except ImportError as error:
        raise ImportError(f"{error}. Serving needs: pip install 'rabbitllm[serve]'") from error
    from rabbitllm.cli.answer import placement
    from rabbitllm.utils.memory import parse_size, total_host_memory

    try:
        memory = parse_size(arguments.queue, total_host_memory)
    except ValueError as error:
        raise ValueError(f"--queue: {error}") from error
    if memory < LEAST_QUEUE:
        raise ValueError(f"--queue: {arguments.queue} holds no request: give one such as 256MiB.")
    listener = _listen(arguments.host, arguments.port)
    model = load_shared(arguments).model
    name = arguments.name or name_of(arguments.model)
    host, taken = listener.getsockname()[:2]
    loopback = ipaddress.ip_address(host).is_loopback
    names = {"localhost", *(allowed.lower() for allowed in arguments.allowed_host)}
    admission = Admission(
        api_key=arguments.api_key,
        hosts=names if loopback or arguments.allowed_host else None,
    )
    worker = Worker(model, memory, arguments.sequences)
    app = create_app(worker, name, admission, arguments.max_new_tokens)
    print(f"Loaded: {placement(model)}", file=sys.stderr)
    print(f"Serving {name} on http://{_bracketed(host)}:{taken}/v1", file=sys.stderr, flush=True)
    if not arguments.api_key and not loopback:
        print("Anybody who reaches this address may use it: pass --api-key.", file=sys.stderr)
    serve(app, listener)
    return 0


def _api_key(text: str) -> str:
    """The type of an argument that a client can present in a header."""
    if not text or text != text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(
            "a key has at least one letter, no line breaks, and no spaces around it. To let "
            "everybody in, pass none and unset RABBITLLM_API_KEY"
        )
    return text


def _listen(host: str, number: int) -> socket.socket:
    """A socket that listens on an address of either protocol.

    Raises:
        OSError: the address is taken, is not this machine's, or is none.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise OSError(
            f"Cannot listen on {_bracketed(host)}:{number}: {reason}. Choose another address with "
            "--host and --port; port 0 takes a free one."
        ) from error


def _bracketed(host: str) -> str:
    """A host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
