"""The process that libFuzzer runs in: it gives inputs to the targets, and records which branches of the core they take.

Its arguments are libFuzzer's, but for `--plant`, with the name of a defect. `python -m tests.fuzz` starts it.
"""

import logging
import sys
from contextlib import AbstractContextManager, nullcontext

import atheris

# What has hardly a branch that depends on bytes.
_PLAIN = [f"netcomm.protocol.{name}" for name in ("batch", "events", "storage_queue", "wall_clock")]

with atheris.instrument_imports(include=["netcomm.protocol"], exclude=_PLAIN):
    import netcomm.protocol.node  # noqa: F401

from tests.fuzz.planted import DEFECTS  # noqa: E402
from tests.fuzz.targets import run_input  # noqa: E402 # netcomm must be imported under instrumentation first

if __name__ == "__main__":
    logging.getLogger("netcomm").setLevel(logging.CRITICAL + 1)  # it would be half of the time
    arguments = sys.argv
    planted: AbstractContextManager[None] = nullcontext()
    if "--plant" in arguments:
        index = arguments.index("--plant")
        planted = DEFECTS[arguments[index + 1]].planted()
        del arguments[index : index + 2]
    with planted:
        atheris.Setup(arguments, run_input)
        atheris.Fuzz()
