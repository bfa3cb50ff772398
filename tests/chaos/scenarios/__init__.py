# SPDX-License-Identifier: Apache-2.0
"""What the processes under test do; started by tests.chaos.workers, one function each.

A scenario gets a :class:`tests.chaos.workers.Stage` and parameters.  It lives in the
world that the test chose, with that world's threads.
"""
