"""Settings of the whole test suite."""

from hypothesis import HealthCheck, settings

# How long one example takes says more of what else the machine does than of the code: `make bench` measures time.
settings.register_profile(
    "project", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")
