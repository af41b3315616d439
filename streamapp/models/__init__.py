"""What can be drawn with: the model that ships, the registry's catalogue, sizes, styles and facts per family.

Imports no torch: the web processes use it too.
"""
