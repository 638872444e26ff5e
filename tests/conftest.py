"""What every test shares: how much hypothesis tries."""

from hypothesis import settings

# No deadline: a time limit per example fails on a busy machine and finds nothing.
settings.register_profile("default", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)  # make test-all
settings.load_profile("default")
