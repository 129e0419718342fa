"""The process layer: gunicorn as the master, our own workers, and what they share (POSIX, but `options`)."""
