"""alphalloc"""
