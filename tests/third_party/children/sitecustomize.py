"""Imported when a child process of a program with the official package starts; see `prepare`."""

import official_peer

official_peer._define_missing_operators()
