"""From what others trained to a version: `headway convert`."""
