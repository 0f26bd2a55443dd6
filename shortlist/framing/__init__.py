"""What are we optimizing? The objective, its guardrails and the constraints it must live within."""
