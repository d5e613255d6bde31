"""A package that brings a probe, a problem and a suite; ``docs/extending.md`` shows it."""
