"""Which version gets which traffic: the desired state, and how it is changed."""
