"""The one path that every API and the command line call."""
