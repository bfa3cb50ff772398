"""Deterministic simulation: driver, bus and network in one process, from one seed.

``python -m tests.simulation`` runs it; docs/reliability.rst explains it.

* ``world``: virtual time, and a hub for each simulated process
* ``network``: streams between them, and all that happens to streams
* ``run``: a run with its promises, and the shortest list of faults that fails
"""
