"""Models as they lie on disk, which of them get which traffic, and what a process serves.

manifest.py says what a version is, store.py what is there. drafting/ makes a version of a bare file, storing/ lets
versions in and out, releases/ says who gets traffic, servables/ loads a version, serving/ keeps a process to that.
"""
