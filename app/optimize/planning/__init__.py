"""What the Horizontal Pod Autoscaler would do: `headway plan hpa`."""
