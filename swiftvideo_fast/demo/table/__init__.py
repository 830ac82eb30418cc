"""`make table`: every method on the demo's benchmark, in the layouts of the paper's tables and figures."""
