"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines are busy at times: what an example computes is judged, not how long it takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
