"""Kernels put into models and estimators; each adapter is imported on its own."""
