"""What a process serves: brought to the desired state, and shown."""
