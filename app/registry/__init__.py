"""Models as they lie on disk, which of them get which traffic, and what a process serves.

manifest.py says what a version is, store.py what is there; versions come in and go by storing/, drafting/ makes one of a
bare file, releases/ says who gets traffic, servables/ loads a version, serving/ keeps a process equal to the releases.
"""
