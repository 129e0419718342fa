"""The command `headway`: one file a group of commands. Data on stdout, everything else on stderr."""
