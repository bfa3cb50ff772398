# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of greenamqp against its peers and its limits; see docs/benchmarks.rst.

``python -m benchmarks compare | fleet | instructions | listeners | soak``.  These are
no tests: nothing here asserts a time.  What they do check is that no message is lost.
"""
