"""Runs that version 0.1.0 trained, what it said of them, and what reads both."""
