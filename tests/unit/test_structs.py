"""Types that threads decode for the first time at the same moment do not end the process."""

import inspect
import subprocess
import sys

import pytest

import trimtab_agent.app
from trimtab.api import app as api
from trimtab.archive import app as archive
from trimtab.monitor import app as monitor
from trimtab.serve import app as serve

PROGRAM = """
import sys, threading, msgspec
from trimtab import structs
from trimtab.contracts.model import Contract
from trimtab.records import Verdict
{prepare}
body = msgspec.json.encode(Contract(name="m", task="binary"))
sys.setswitchinterval(1e-6)
together = threading.Barrier(4)

def decode():
    together.wait()
    msgspec.json.decode(body, type=Contract)

threads = [threading.Thread(target=decode) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_types_that_were_prepared_may_be_decoded_by_all_threads_at_once():
    program = PROGRAM.format(prepare="assert structs.prepare() > 10")
    for _ in range(12):  # without `prepare`, about one of four ends in a segmentation fault
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2_000:]


@pytest.mark.parametrize(
    "run",
    [
        monitor.run_monitor,
        archive.run_archive,
        api.run_api,
        serve.run_serve,
        trimtab_agent.app.run_agent,
    ],
)
def test_every_process_prepares_them_before_anything_else(run):
    body = inspect.getsource(run).split('"""')[2]
    first = next(
        line.strip() for line in body.splitlines() if line.strip() and "import" not in line
    )
    assert first == "structs.prepare()"
