"""The shim: a small process, one for a directory, that is the parent of the directory's jobs.

It outlives the applications that start jobs through it, and keeps for them what only a parent can
know. Nothing but the standard library is imported in it, so that it stays small.
"""
