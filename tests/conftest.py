import os

from hypothesis import settings

# Machines are shared and noisy, so no example has a deadline. CI draws the same examples every time.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")
