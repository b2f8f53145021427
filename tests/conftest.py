"""How all tests draw: an example may take as long as it takes, for the machine may be busy."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("untimed", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")
