"""Work on models that happens before they serve. Never imported by the server."""
