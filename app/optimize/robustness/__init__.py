"""Labels changed by attacks and corruptions: `headway robustness`."""
