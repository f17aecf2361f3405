"""The process that serves: uvicorn with this server's limits, and an end that comes in time."""

import gc
import os
import socket
import sys
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI
from typing_extensions import override

from rabbitllm.serving.connections import Connection, most_connections

GRACE = 2
"""Seconds that answers get to finish in when the server is told to stop."""
LAST_GRACE = 4.0
"""Seconds after which the process ends, whatever a layer or a tokenizer is doing."""

SWITCH = 0.0005
"""Seconds after which a thread lets the next one run Python: the event loop needs a few turns for
each answer, while a prompt is made in another thread."""


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answers requests until SIGINT or SIGTERM.

    Args:
        app: what answers.
        listener: a listening socket.
    """
    sys.setswitchinterval(SWITCH)
    gc.freeze()  # the model and its libraries stay: no collection need walk through them
    connections = most_connections()
    config = uvicorn.Config(
        app,
        log_config=None,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="on",
        proxy_headers=False,  # addresses count connections, so they are nobody's to claim
        limit_concurrency=connections,
        backlog=connections // 2,  # asyncio accepts as many in one go
        timeout_graceful_shutdown=GRACE,
    )
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        end = threading.Timer(LAST_GRACE, os._exit, [128 + sig])
        end.daemon = True
        end.start()
