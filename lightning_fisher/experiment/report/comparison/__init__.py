"""The report of the comparison of methods: one table a setting, one figure."""
