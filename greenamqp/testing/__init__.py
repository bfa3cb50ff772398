# SPDX-License-Identifier: Apache-2.0
"""For the tests of other programs: a message bus of their own.

``plugin`` is the pytest plugin, which pytest loads by itself; ``process`` has the
embedded broker as a process.
"""
