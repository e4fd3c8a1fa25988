"""The HTTP cache: policy, keys, locks and stores."""
