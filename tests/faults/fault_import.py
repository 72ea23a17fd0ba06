"""A kernel that does not wipe a page on fork: rings, which need it, are refused."""

import errno
import sys

from fault_filters import MADVISE, refuse

WIPE_ON_FORK = 18

refuse(MADVISE, errno.EINVAL, {2: WIPE_ON_FORK})

import uring  # noqa: E402 - what is looked at is what happens when it is imported

try:
    uring.Ring(8)
except uring.SetupError as error:
    assert error.errno == errno.ENOMEM, error  # noqa: PT017 - this is no test
    sys.stdout.write("held\n")
