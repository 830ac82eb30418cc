"""Measuring and showing: distances, figures of fidelity, tables, and the report."""
