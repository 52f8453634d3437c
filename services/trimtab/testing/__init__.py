"""Fakes, brokers and conformance suites that ship with the package."""
