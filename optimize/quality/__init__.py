"""Quality: distribution distances, drift, classifier accuracy, confidence intervals."""
