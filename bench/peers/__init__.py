"""The servers a user would pick instead, each as its own documentation writes such a service; one file a peer.

None of them is imported by the project: each runs in its own environment (bench/environments.py).
"""
