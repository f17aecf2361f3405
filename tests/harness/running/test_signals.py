"""SIGTERM to the run alone ends it, what it has started, and what that has."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from harness.matrix import ROOT
from harness.records import Store
from tests.patience import PATIENCE

RELEASES = ["5.0.0", "5.1.0", "5.2.0", "5.3.0"]
# In place of pytest: a process that stays as long as its connection to the test.
CELLS = """
import socket, sys
socket.create_connection(("127.0.0.1", int(sys.argv[1]))).recv(1)
"""
TOX = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CELLS!r}, sys.argv[1]])"
RUN = f"""
import sys
from harness.__main__ import main
from harness.running import environments
from harness.running import run as runs
from harness.running.environments import Environment

moment, port, reports = sys.argv[1:]
environments.tox = lambda *_: [sys.executable, "-c", {TOX!r}, port]
if moment == "cells":
    runs.make_environments = lambda releases, *_: {{
        release: Environment("no such version" if release == "5.0.0" else "")
        for release in releases
    }}
selection = ["--releases", "{",".join(RELEASES)}", "--arch", "llama", "--attn", "sdpa"]
sys.exit(main(["matrix", *selection, "--jobs", "2", "--reports", reports]))
"""


@pytest.mark.parametrize(
    ("moment", "running", "recorded"), [("environments", 1, []), ("cells", 2, ["5.0.0"])]
)
def test_sigterm_leaves_every_record_and_no_child(tmp_path, moment, running, recorded):
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(PATIENCE)
        port = str(server.getsockname()[1])
        command = [sys.executable, "-c", RUN, moment, port, str(tmp_path)]
        process = stack.enter_context(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(process.kill)
        children = [stack.enter_context(server.accept()[0]) for _ in range(running)]
        process.terminate()
        printed, _ = process.communicate(timeout=PATIENCE)
        for child in children:
            child.settimeout(PATIENCE)
            assert child.recv(1) == b""  # closed, for it has ended
        server.settimeout(0)
        with pytest.raises(BlockingIOError):  # and none began in its place
            server.accept()
    assert process.returncode == 128 + signal.SIGTERM
    assert printed.endswith(
        "Stopped. What was measured is recorded: without --force, the next run does the rest\n"
    )
    stores = [Store(tmp_path / "results", release) for release in RELEASES]
    assert [record.release for store in stores for record in store.read()] == recorded
