"""What holds for every test."""

import hypothesis

# A shared machine may stop a process for a second at any moment, so time is no sign of a fault here: the
# limit of pytest-timeout stands instead. A failure prints what reproduces it.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True, max_examples=10_000)
hypothesis.settings.load_profile("default")
