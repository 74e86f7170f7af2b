"""Level 4: clocks, rollouts and live sessions."""
