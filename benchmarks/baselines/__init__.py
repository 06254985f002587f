"""Other people's formulations, written again from their papers, as slow honest baselines."""
