"""Deterministic simulation: driver, bus and network in one process, from one seed.

* ``world``: virtual time, and a hub for each simulated process
* ``network``: streams between them, and all that happens to streams
"""
