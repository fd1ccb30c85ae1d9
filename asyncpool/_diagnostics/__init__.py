"""What a pool can say of itself: snapshots, explanations, reports of leaks."""
