"""The editing benchmark on CIFAR-10."""
