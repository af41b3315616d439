"""A run that pulls plugs: tasks are submitted while everything they depend on is killed, and each must end once.

``python -m tests.chaos --seed N`` runs it on real servers, ``--embedded`` over the embedded broker in one process.
The same seed gives the same faults at the same moments; what they hit depends on the machine.
"""
