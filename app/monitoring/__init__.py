"""What becomes of answers: the ids that feedback comes back with, and the figures of quality and drift."""
