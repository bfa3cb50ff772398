# SPDX-License-Identifier: Apache-2.0
"""A fuzzer over the whole path from the bytes of a peer to the driver's callers.

``python -m pytest tests/fuzz`` looks for new trouble (FUZZ_EXAMPLES says how long);
what it found, and one example of each way to end, is in ``corpus`` and replayed by the
ordinary tests.  ``python -m tests.fuzz.collect`` looks for ways that are not there yet.
"""
