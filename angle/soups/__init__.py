"""Model soups: the weighted mean of the weights of several trained runs."""
