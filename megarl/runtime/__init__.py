"""Ray placement, actor shells and the process environment."""
