"""What a version costs on this machine: `headway profile`."""
