"""RiskPO."""
