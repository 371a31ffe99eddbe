"""The RL loop; speaks to Protocols."""
